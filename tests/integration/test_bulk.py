"""`classify --out`: the answers of the server, for any number of images, whatever interrupts it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.bulk import Row, counts, pictures, rows, run, start
from tests.models import png, publish_tiny, rounds_of
from tests.objects import object_store
from tests.server import Server, is_right, picture

LIMITS = {"max_image_bytes": 200_000, "max_pixels": 1_000_000}  # of the server that all tests share


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model repository, of a prompt model and of one that takes its time."""
    folder = tmp_path_factory.mktemp("place")
    publish_tiny(folder / "model_repository")
    publish_tiny(folder / "model_repository", "slow", work=rounds_of(0.1))
    return folder


def as_served(row: Row) -> dict[str, Any]:
    """A row in the shape of an HTTP answer, without timings."""
    if row["error_code"]:
        return {"error": {"code": row["error_code"], "detail": row["error_detail"]}}
    return {name: row[name] for name in ("classes", "prediction_set", "coverage", "abstained")}


def served(server: Server, data: bytes, model: str) -> dict[str, Any]:
    answer = server.client.post(f"/v1/models/{model}/classify", params={"top_k": 2}, content=data).json()
    if "predictions" not in answer:
        return {"error": {name: answer[name] for name in ("code", "detail")}}
    (prediction,) = answer["predictions"]
    return {name: value for name, value in prediction.items() if name != "timings_ms"}


def test_the_answers_are_those_of_the_server(server: Server, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    images = {f"{index}.png": png(pixels) for index, pixels in enumerate(noise)}
    images |= {f"plain-{index}.png": png(picture(index)) for index in range(60)}
    images |= {
        "torn.png": png(picture(1))[:-9],
        "text.jpg": b"not an image",
        "empty.gif": b"",
        "long.png": bytes(200_001),
        "large.png": png(np.zeros((1001, 1000), np.uint8)),
    }
    (tmp_path / "images" / "below").mkdir(parents=True)
    for name, data in images.items():
        (tmp_path / "images" / "below" / name).write_bytes(data)
    (tmp_path / "images" / "notes.txt").write_text("not looked at")
    done = ("images", "--model", "tiny", "--model-repository", server.repository, "--top-k", 2, "--out", "out")
    assert counts(*done, cwd=tmp_path, **LIMITS) == {"classified": 100, "bad": 5, "skipped": 0}
    found = rows(tmp_path / "out")
    for name, data in images.items():
        assert as_served(found[name]) == served(server, data, "tiny"), name
    for row in found.values():
        assert (row["model"], row["version"], row["row"]) == ("tiny", "1", None)
        assert row["abstained_by"] == ("energy" if row["abstained"] else None)
        best = row["classes"][0] if row["classes"] else {"label": None, "probability": None}
        assert (row["label"], row["probability"]) == (best["label"], best["probability"])


def test_a_taught_head_answers_as_served(server: Server, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/heads.db"
    (tmp_path / "server").mkdir()
    with Server(server.repository, tmp_path / "server", database_url=database).start() as teacher:
        assert teacher.client.put("/v1/heads/colours", json={"backbone": "tiny"}).status_code == 201
        for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            noise = np.random.default_rng(7).integers(-25, 26, (12, 3))
            shades = [np.full((8, 8, 3), np.clip(np.array(colour) + each, 0, 255), np.uint8) for each in noise]
            files = [("image", png(shade)) for shade in shades]
            teacher.client.post("/v1/heads/colours/examples", params={"label": label}, files=files).raise_for_status()
        teacher.client.post("/v1/heads/colours/fit").raise_for_status()
        images = pictures(tmp_path / "images", 100)
        flags = ("--model", "colours", "--model-repository", server.repository, "--top-k", 2, "--features")
        run("images", *flags, "--out", "out", cwd=tmp_path, database_url=database)
        for name, row in rows(tmp_path / "out").items():
            answer = served(teacher, (images / name).read_bytes(), "colours")
            chances = [[each.pop("probability") for each in one["classes"]] for one in (answer, row)]
            assert chances[0] == pytest.approx(chances[1], abs=2e-6)  # sums in another order
            assert as_served(row) == answer
            colour = picture(int(name.removesuffix(".png")))[0, 0] / 255
            assert row["features"] == pytest.approx(colour.tolist(), abs=1e-6)


def test_an_image_that_breaks_the_model_harms_no_other(server: Server, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 80)
    (images / "white.png").write_bytes(png(np.full((8, 8, 3), 255, np.uint8)))
    flags = ("--model", "glass", "--model-repository", server.repository, "--out", "out")
    assert counts("images", *flags, cwd=tmp_path) == {"classified": 80, "bad": 1, "skipped": 0}
    found = rows(tmp_path / "out")
    assert found.pop("white.png")["error_code"] == "backend_failed"
    assert all(is_right(row, picture(int(name.removesuffix(".png")))) for name, row in found.items())


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_what_was_interrupted_goes_on(place: Path, tmp_path: Path, blow: signal.Signals) -> None:
    images, out = pictures(tmp_path / "images", 300), tmp_path / "out"
    command = (images, "--model", "slow", "--images-per-part", 10, "--out", out)
    with start(*command, cwd=place) as process:
        give_up = time.monotonic() + 60
        while len(list(out.glob("part-*"))) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(blow)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == (130 if blow == signal.SIGINT else -9)
    assert ("the same command goes on" in complaints) == (blow == signal.SIGINT)
    before = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    (images / "late.png").write_bytes(png(picture(300)))  # the list is that of the beginning
    skipped = 10 * len(before)
    assert counts(*command, cwd=place) == {"classified": 300 - skipped, "bad": 0, "skipped": skipped}
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert rows(out).keys() == {f"{index}.png" for index in range(300)}
    assert counts(*command, cwd=place) == {"classified": 0, "bad": 0, "skipped": 300}


def test_a_folder_takes_the_answers_of_one_question(place: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 5)
    publish_tiny(tmp_path / "models")
    publish_tiny(tmp_path / "models", "other")
    begun = (images, "--out", tmp_path / "out", "--model-repository", tmp_path / "models")
    run(*begun, "--model", "tiny", cwd=tmp_path)
    publish_tiny(tmp_path / "models", seed=1)  # whatever is published meanwhile, it goes on with what began
    assert counts(*begun, "--model", "tiny", cwd=tmp_path) == {"classified": 0, "bad": 0, "skipped": 5}
    refused = run(*begun, "--model", "other", "--top-k", 2, cwd=tmp_path, status=2)
    assert refused.count("\n") == 1
    assert all(part in refused for part in ("model tiny, not other", "top_k 3, not 2", "name another folder"))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.parquet").write_bytes(b"")
    refused = run(images, "--model", "tiny", "--out", tmp_path / "tables", cwd=place, status=2)
    assert "holds other Parquet files" in refused


def table(path: Path, images: list[bytes | None], *, row_group_size: int = 4) -> None:
    """A table like those of Hugging Face: the bytes are in a structure."""
    column = [{"bytes": data, "path": None} for data in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(column, kind), "number": list(range(100, 100 + len(images)))}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)


def test_tables(place: Path, tmp_path: Path) -> None:
    first: list[bytes | None] = [png(picture(index)) for index in range(10)]
    table(tmp_path / "a.parquet", [*first, None, b"no image"])
    table(tmp_path / "b.parquet", [png(picture(index)) for index in range(20, 23)])
    (tmp_path / "c.png").write_bytes(png(picture(30)))
    command = (f"{tmp_path}/*.parquet", tmp_path / "c.png", "--model", "tiny", "--out", tmp_path / "out")
    refused = run(*command, cwd=place, status=2)
    assert "'image' of" in refused
    assert "name one of its fields, like image.bytes" in refused
    options = ("--column", "image.bytes", "--id-column", "number", "--images-per-part", 6)
    assert counts(*command, *options, cwd=place) == {"classified": 14, "bad": 2, "skipped": 0}
    found = parquet.read_table(tmp_path / "out").to_pylist()
    for name, numbers in (("a", range(10)), ("b", range(20, 23))):
        of_table = sorted((row for row in found if row["file"].endswith(f"{name}.parquet")), key=lambda row: row["row"])
        assert [row["row"] for row in of_table] == list(range(len(of_table)))
        assert [row["id"] for row in of_table] == [str(100 + index) for index in range(len(of_table))]
        assert all(is_right(row, picture(number)) for row, number in zip(of_table, numbers, strict=False))
        assert [row["error_code"] for row in of_table[len(numbers) :]] == (
            ["invalid_image", "unsupported_format"] if name == "a" else []
        )
    (image,) = (row for row in found if row["file"].endswith("c.png"))
    assert (image["row"], image["id"]) == (None, None)
    assert is_right(image, picture(30))


def test_names_that_are_no_text_and_globs(place: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/images/\xff"
    os.makedirs(folder)  # noqa: PTH103 - bytes for names
    for name in (b"a.png", b"b.PNG", b"c.txt"):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(png(picture(1)))
    for given, names in (("images", ["a.png", "b.PNG"]), ("images/**/[a-b].png", ["a.png"])):
        out = tmp_path / f"out-{len(names)}"
        run(tmp_path / given, "--model", "tiny", "--out", out, cwd=place)
        found = rows(out)
        assert sorted(found) == names
        assert all(is_right(row, picture(1)) for row in found.values())
        assert found["a.png"]["file"] == f"{tmp_path}/images/\ufffd/a.png"


def test_an_object_store(place: Path, tmp_path: Path) -> None:
    """Against as much of S3 as tests/objects.py has."""
    with object_store() as store:
        for index in range(30):
            store.objects[f"bucket/photos/{index % 3}/a photo+{index}.png"] = png(picture(index))
        store.objects["bucket/photos/notes.txt"] = b"not looked at"
        table(tmp_path / "table.parquet", [png(picture(index)) for index in range(40, 50)])
        store.objects["bucket/tables/one.parquet"] = (tmp_path / "table.parquet").read_bytes()
        sources = [store.address(path) for path in ("bucket/photos/*/a photo+1*.png", "bucket/tables/*.parquet")]
        command = (*sources, "--column", "image.bytes", "--model", "tiny", "--images-per-part", 5)
        out = store.address("bucket/answers/today")
        assert counts(*command, "--out", out, cwd=place) == {"classified": 21, "bad": 0, "skipped": 0}
        del store.objects["bucket/answers/today/part-000001.parquet"]
        assert counts(*command, "--out", out, cwd=place) == {"classified": 5, "bad": 0, "skipped": 16}
        for key, data in store.objects.items():
            if "/answers/" in key:
                (tmp_path / key.rpartition("/")[2]).write_bytes(data)
        run(store.address("bucket/photos"), "--model", "tiny", "--out", tmp_path / "all", cwd=place)
        assert len(rows(tmp_path / "all")) == 30
        missing = run(store.address("bucket/nothing"), "--model", "tiny", "--out", tmp_path / "no", cwd=place, status=2)
        assert missing == "error: s3://bucket/nothing does not exist\n"
    found = [row for part in sorted(tmp_path.glob("part-*")) for row in parquet.read_table(part).to_pylist()]
    photos = {row["file"]: row for row in found if row["row"] is None}
    for index in (1, *range(10, 20)):
        assert is_right(photos.pop(f"s3://bucket/photos/{index % 3}/a photo+{index}.png"), picture(index))
    assert not photos
    assert [row["row"] for row in found if row["row"] is not None] == list(range(10))
    assert b"secret" not in (tmp_path / "_manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "--engine", "ray"], "--engine belongs to --out FOLDER"),
        (["s3://bucket/prefix"], "s3://bucket/prefix is classified with --out FOLDER"),
        (["images", "--out", "o", "--images-per-part", "0"], "--images-per-part must be at least 1"),
        (["images", "--out", "o", "--threads", "0"], "--threads: Input should be greater than or equal to 1"),
        (["nowhere", "--out", "o"], "nowhere does not exist"),
        (["nowhere/*.png", "--out", "o"], "no images found"),
        (["a.parquet", "--out", "o"], "a.parquet is not a Parquet file that can be read"),
        (["x://bucket", "--out", "o"], "x://bucket: paths, file://, s3:// and gs:// are known"),
    ],
)
def test_a_mistake_is_one_clear_line(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    (tmp_path / "images").mkdir()
    flags = ("--model", "tiny", "--model-repository", place / "model_repository")
    refused = run(*arguments, *flags, cwd=tmp_path, status=2)
    assert message in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "o").exists()
