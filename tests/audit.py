"""`python -m tests.audit`: whether anything installed has a known vulnerability, if the database can be reached.

pip-audit asks it. Where it cannot be reached pip-audit fails, or, behind a mirror of packages, finds none of them there
and succeeds; neither says anything about the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_UNREACHED = (
    "ConnectionError",
    "Could not connect",
    "ConnectTimeout",
    "Connection refused",
    "Max retries exceeded",
    "timed out",
)


def main() -> int:
    """Returns: 0 if nothing is known to be vulnerable, or nobody can be asked; 1 if something is, or it fails."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True, check=False)
    status, text = verdict(done.stdout, done.stderr)
    sys.stdout.write(f"{text}\n")
    return status


def verdict(output: str, errors: str) -> tuple[int, str]:
    """The exit status, and what to say.

    Args:
        output: pip-audit's JSON; something else if it failed.
        errors: What it wrote beside that.
    """
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(sign in errors for sign in _UNREACHED):
            return 0, "audit: the database of vulnerabilities cannot be reached from here; nothing was audited"
        return 1, f"audit: pip-audit failed:\n{errors[-2000:]}"
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return 0, f"audit: the database cannot be reached from here: it knows none of {len(packages)} packages"
    found = [
        "{name} {version}: ".format_map(package) + f"{one['id']}, mended in {', '.join(one['fix_versions']) or 'none'}"
        for package in audited
        for one in package["vulns"]
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    said = f"audit: {len(audited)} packages, {len(found)} known vulnerabilities"
    return int(bool(found)), "\n".join([*found, said + (f"; not audited: {', '.join(skipped)}" if skipped else "")])


if __name__ == "__main__":
    sys.exit(main())
