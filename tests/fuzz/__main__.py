"""`python -m tests.fuzz TARGET`: coverage-guided fuzzing with atheris; what is found is written as a file and shown."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.mutation import PNG, mended

FINDINGS = Path(__file__).with_name("findings")
INSTRUMENTED = ["service", "PIL", "python_multipart", "zipfile", "google.protobuf.text_format"]


def main() -> int:
    """Returns: 0 if nothing was found, 1 if something was, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Fuzz what reads strangers' input, until something is found or the time is over.",
        epilog="A finding is any error but the documented refusals, a wrong answer, or more time or memory than one"
        " input may take. Fix it, and keep the file: tests/fuzz/test_replay.py runs all that is in that folder.",
    )
    parser.add_argument("target", choices=["decoder", "bodies", "tensors", "config", "archive", "http2"])
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 takes one at random (default)")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to go on from, and to add to (default: none)")
    parser.add_argument(
        "--findings", type=Path, default=FINDINGS, help="folder for what is found (default: %(default)s)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args, libfuzzer = parser.parse_known_args()
    if args.inside:
        _fuzz(args.target, libfuzzer)
    if libfuzzer:
        parser.error(f"unknown arguments: {' '.join(libfuzzer)}")
    return _watch(args)


def _watch(args: argparse.Namespace) -> int:
    """Fuzz in a process of its own: what is found may end it in any way."""
    from tests.fuzz.targets import TARGETS

    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not here: python -m pip install '.[dev]' on Linux, Python 3.11 to 3.13", file=sys.stderr)
        return 2
    target = TARGETS[args.target]
    found = args.findings / args.target
    found.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    with tempfile.TemporaryDirectory(prefix="fovea-fuzz-") as scratch:
        corpus, words = args.corpus or Path(scratch, "corpus"), Path(scratch, "words")
        corpus.mkdir(parents=True, exist_ok=True)
        for name, data in target.seeds().items():
            (corpus / f"seed-{name}").write_bytes(data)
        for file in before:
            shutil.copy(file, corpus)
        words.write_text("".join(map(_word, target.dictionary)))
        command = [sys.executable, "-m", "tests.fuzz", args.target, "--inside", str(corpus)]
        command += [
            f"-dict={words}",
            f"-max_total_time={args.seconds}",
            f"-artifact_prefix={found}/",
            f"-seed={args.seed}",
        ]
        command += [
            f"-max_len={target.max_bytes}",
            "-timeout=10",
            f"-rss_limit_mb={target.megabytes}",
            "-len_control=0",
        ]
        started = time.monotonic()
        code = subprocess.run(command, check=False, env=os.environ | {"TMPDIR": scratch}).returncode
    new = sorted(set(found.iterdir()) - before)
    for file in new:
        print(f"\nfound: {file} ({file.stat().st_size} bytes): {file.read_bytes()[:200]!r}")
    if not new and code:
        print(f"the fuzzer ended with {code} and left no file", file=sys.stderr)
        return 2
    print(f"{args.target}: {len(new)} findings in {time.monotonic() - started:.0f} s")
    return 1 if new else 0


def _word(word: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from tests.fuzz.targets import TARGETS

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        del seed
        changed = bytes(atheris.Mutate(data, max_bytes))
        return mended(changed) if data.startswith(PNG) else changed

    more = {"custom_mutator": mutate} if name == "decoder" else {}
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name], **more)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
