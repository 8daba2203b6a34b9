"""Fail if a test of a junit report was skipped for any other reason than the lack of a GPU."""

import sys
import xml.etree.ElementTree as ElementTree

GPU_REASON = "needs a GPU"


def forbidden_skips(report: str) -> list[str]:
    """Name and reason of every skipped test that should have run, from the XML of a junit report."""
    found = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        for skipped in case.iter("skipped"):
            reason = skipped.get("message", "")
            if skipped.get("type") != "pytest.xfail" and not reason.startswith(GPU_REASON):
                found.append(f"{case.get('classname')}.{case.get('name')}: {reason}")
    return found


def main(path: str) -> int:
    """Print what was skipped and say whether that is a failure."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 (one line, no other path work)
        found = forbidden_skips(file.read())
    for line in found:
        print(f"skipped without leave: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
