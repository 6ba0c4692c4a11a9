"""``python -m lsa_study.cli`` is ``lsa``."""

from lsa_study.cli import main

if __name__ == "__main__":
    main()
