"""`lsa report --serve`: this machine alone, two paths, the newest page, and a clean end."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from synthetic import write_study


def start(results, *more):
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "lsa_study.cli", "report", "table1", "--serve", "--results",
         str(results), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def get(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_renewed_and_ended(tmp_path, number):
    write_study(tmp_path, "table1", seeds=[0], only="swin,net1")
    with start(tmp_path, "--port", "0") as server:
        line = server.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", line)[0]
        page = get(address)
        assert "<title>" in page
        assert 'id="lsa-now"' in page
        assert '"built": 1' in get(f"{address}now")
        assert "2 done" in get(f"{address}now")
        for path in ("../runs.parquet", "report.html", "%2e%2e/", "//etc/passwd", "now?x"):
            with pytest.raises(urllib.error.HTTPError) as error:
                get(address + path)
            assert error.value.code == 404
            error.value.close()
        port = int(address.rsplit(":", 1)[1].strip("/"))
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        other.request("GET", "/", headers={"Host": "evil.example:80"})
        assert other.getresponse().status == 404
        other.close()
        if number == signal.SIGTERM:
            write_study(tmp_path, "table1", seeds=[0], only="net2")
            end = time.monotonic() + 60
            while '"built": 2' not in get(f"{address}now"):
                assert time.monotonic() < end, "was not built anew"
                time.sleep(0.5)
            assert "3 done" in get(f"{address}now")
        server.send_signal(number)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out, err) == (0, "ended\n", "")


def test_a_port_in_use_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with start(tmp_path, "--port", str(port)) as server:
            _, err = server.communicate(timeout=60)
    assert server.returncode == 3
    assert f"lsa: --port {port}: Address already in use; give another --port" in err
    assert not [*tmp_path.iterdir()]
