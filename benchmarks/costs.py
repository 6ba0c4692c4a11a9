"""Count parameters and multiply-adds of the networks whose costs tables show or claims are about.

They stand in ``results/benchmarks/costs.json``, so that tables and verdicts are written without
torch; a test counts them anew. Run it after a change of such a study or claim:
``python benchmarks/costs.py``.
"""

from pathlib import Path

import torch

from lsa_study.analysis.article import network_key
from lsa_study.analysis.measured import COUNTED
from lsa_study.config import study
from lsa_study.config.ledger import Claims
from lsa_study.files import write_json
from lsa_study.measure import count
from lsa_study.models import from_settings
from lsa_study.models.ablation_check import Unbounded

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Count every row of the studies that show costs, and those that claims of costs name."""
    networks = {}
    claimed = {row for one in Claims.read() if one.metric in COUNTED for row in one.rows}
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        if path.stem in ("claims", "cluster"):
            continue
        if "paper" in study.tiers_of(str(path)):
            loaded = study.load_study(path, tier="paper")
            for name, settings in loaded.variants.items():
                if loaded.file.costs is None and f"{path.stem}/{name}" not in claimed:
                    continue
                key, side = network_key(settings), settings.data.image_size
                if key not in networks:
                    with torch.device("meta"), Unbounded():
                        network = from_settings(settings.model, image_size=side, num_classes=1000)
                    networks[key] = {"rows": [], **vars(count(network, (3, side, side)))}
                networks[key]["rows"].append(f"{path.stem}/{name}")
    write_json(ROOT / "results" / "benchmarks" / "costs.json", {"networks": networks})


if __name__ == "__main__":
    main()
