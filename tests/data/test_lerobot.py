"""LeRobotDataset v3.0: the schema that others rely on, sets of others, and damage."""

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sets import write_small

from vla_rl.data import DatasetError
from vla_rl.data.dataset import ReadOptions, WriteOptions
from vla_rl.data.formats import convert, dataset_info, read_episodes
from vla_rl.data.lerobot.check import check_lerobot
from vla_rl.data.lerobot.statistics import FrameHistogram, vector_statistics

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.image/chunk-000/file-000.mp4"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_small(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "set", "lerobot")
    return tmp_path / "set"


def test_the_layout_is_lerobot_s(dataset: Path) -> None:
    files = sorted(str(file.relative_to(dataset)) for file in dataset.rglob("*") if file.is_file())
    assert files == [
        DATA, EPISODES, "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/vla_rl.json", VIDEO,
        VIDEO.replace("image/", "image2/"),
    ]  # fmt: skip
    info = json.loads((dataset / "meta/info.json").read_text())
    expected = {
        "codebase_version": "v3.0", "robot_type": "panda", "total_episodes": 3, "total_frames": 36, "total_tasks": 2,
        "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": 20, "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    assert {name: info[name] for name in expected} == expected
    kinds = {name: (feature["dtype"], feature["shape"]) for name, feature in info["features"].items()}
    assert kinds["observation.images.image"] == ("video", [32, 32, 3])
    assert kinds["observation.state"] == ("float32", [8]) and kinds["action"] == ("float32", [7])
    assert kinds["timestamp"] == ("float32", [1]) and kinds["task_index"] == ("int64", [1])

    table = pq.read_table(dataset / DATA)
    assert pq.ParquetFile(dataset / DATA).num_row_groups == 3
    assert table.schema.field("action").type == pa.list_(pa.float32(), 7)
    assert table.schema.field("timestamp").type == pa.float32() and table.schema.field("index").type == pa.int64()
    assert table["index"].to_pylist() == list(range(36))
    assert table["frame_index"].to_pylist() == [*range(12), *range(15), *range(9)]
    assert table["task_index"].to_pylist() == [0] * 12 + [1] * 24
    np.testing.assert_allclose(table["timestamp"].to_numpy()[:4], [0, 0.05, 0.1, 0.15])
    assert table["next.success"].to_pylist() == [False] * 11 + [True] + [False] * 14 + [True] + [False] * 9

    rows = pq.read_table(dataset / EPISODES).to_pylist()
    assert [row["tasks"] for row in rows] == [["lift it"], ["push it"], ["push it"]]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 12), (12, 27), (27, 36)]
    key = "videos/observation.images.image"
    assert [row[f"{key}/from_timestamp"] for row in rows] == pytest.approx([0, 0.6, 1.35])
    assert [row[f"{key}/to_timestamp"] for row in rows] == pytest.approx([0.6, 1.35, 1.8])
    assert rows[1]["stats/action/count"] == [15] and len(rows[1]["stats/action/q99"]) == 7

    tasks = pq.read_table(dataset / "meta/tasks.parquet")
    assert tasks.schema.pandas_metadata["index_columns"] == ["task"]
    assert dict(zip(tasks["task"].to_pylist(), tasks["task_index"].to_pylist(), strict=True)) == {"lift it": 0, "push it": 1}


def test_videos_show_the_frames_turned_and_in_order(dataset: Path) -> None:
    with av.open(str(dataset / VIDEO)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    assert len(frames) == 36
    stored = [frame for _, demo in read_episodes(dataset.parent / "source") for frame in demo.images["agentview"]]
    for shown, frame in zip(frames, stored, strict=True):
        assert np.abs(shown.astype(int) - frame[::-1, ::-1]).mean() < 3


def test_png_frames_are_lossless(tmp_path: Path) -> None:
    written = write_small(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "set", "lerobot", write=WriteOptions(frames="png"))
    for (_, demo), source in zip(read_episodes(tmp_path / "set"), written, strict=True):
        for camera, frames in source.images.items():
            np.testing.assert_array_equal(demo.images[camera], frames)
    assert check_lerobot(tmp_path / "set") == []


def test_statistics() -> None:
    # Of 0..100: mean 50, variance (101^2 - 1) / 12 = 850.
    found = vector_statistics(np.arange(101.0)[:, None])
    expected = {"min": [0], "max": [100], "mean": [50], "std": [850**0.5], "q01": [1], "q50": [50], "q99": [99], "count": [101]}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value)
    histogram = FrameHistogram()
    frames = np.zeros((2, 1, 2, 3), np.uint8)
    frames[1, 0, 1] = [255, 51, 0]  # one of four pixels
    histogram.add(frames)
    found = histogram.statistics()
    assert np.shape(found["mean"]) == (3, 1, 1) and found["count"] == [2]
    assert np.ravel(found["mean"]) == pytest.approx([0.25, 0.05, 0])
    assert np.ravel(found["std"]) == pytest.approx([0.1875**0.5, 0.1875**0.5 / 5, 0])
    assert np.ravel(found["q50"]).tolist() == [0, 0, 0] and np.ravel(found["q90"]) == pytest.approx([1, 0.2, 0])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sets_of_others_are_read_with_what_the_user_states(dataset: Path) -> None:
    first = next(read_episodes(dataset))[1]
    (dataset / "meta/vla_rl.json").unlink()
    info = dataset_info(dataset)
    assert info.assumed == ("orientation", "gripper", "frames") and info.successes is None
    assert info.convention.frames == "rotated_180" and info.convention.fps == 20
    _, demo = next(read_episodes(dataset))
    np.testing.assert_array_equal(demo.images["agentview"], first.images["agentview"])
    assert demo.spec is None and demo.success
    stated = ReadOptions(stated={"frames": "upright", "gripper": "+1_opens_-1_closes"})
    _, turned = next(read_episodes(dataset, stated))
    np.testing.assert_array_equal(turned.images["agentview"], first.images["agentview"][:, :, ::-1])
    np.testing.assert_array_equal(turned.actions[:, 6], -first.actions[:, 6])
    with pytest.raises(DatasetError, match="contradict the convention 1_opens_0_closes"):
        next(read_episodes(dataset, ReadOptions(stated={"gripper": "1_opens_0_closes"})))
    with pytest.raises(DatasetError, match="the dataset itself states fps"):
        dataset_info(dataset, ReadOptions(stated={"fps": 10.0}))
    done = convert(dataset, dataset.parent / "again", "hdf5")
    assert done.assumed == ("orientation axis_angle", "gripper -1_opens_+1_closes", "frames rotated_180")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: truncate(root / DATA), "file-000.parquet cannot be read"),
    (lambda root: (root / DATA).write_text("a picture"), "file-000.parquet cannot be read"),
    (lambda root: (root / DATA).unlink(), "file-000.parquet is missing"),
    (lambda root: rewrite(root / DATA, lambda table: table.slice(0, 20)), "holds 8 of the 15 steps of episode 1"),
    (lambda root: rewrite(root / DATA, lambda table: table.drop(["action"])), "lacks the column action"),
    (lambda root: truncate(root / EPISODES), "file-000.parquet cannot be read"),
    (lambda root: (root / EPISODES).unlink(), "lacks meta/episodes"),
    (lambda root: rewrite(root / EPISODES, lambda table: table.slice(0, 2)), "lists 2 of its 3 episodes"),
    (lambda root: truncate(root / VIDEO), "file-000.mp4"),
    (lambda root: (root / VIDEO).write_bytes(b"no video"), "file-000.mp4 cannot be read"),
    (lambda root: (root / VIDEO).unlink(), "file-000.mp4 is missing"),
    (lambda root: truncate(root / "meta/info.json"), "info.json cannot be read"),
    (lambda root: edit(root / "meta/info.json", codebase_version="v2.1"), "of version v2.1, we read v3.0"),
    (lambda root: truncate(root / "meta/tasks.parquet"), "tasks.parquet cannot be read"),
    (lambda root: truncate(root / "meta/vla_rl.json"), "vla_rl.json cannot be read"),
    (lambda root: edit(root / "meta/info.json", features={"action": {"dtype": "float32", "shape": [6]}}), "action of shape"),
    (lambda root: edit(root / "meta/info.json", features=["action"]), "info.json cannot be read"),
    (lambda root: (root / "meta/vla_rl.json").write_text("[]"), "vla_rl.json cannot be read"),
    (lambda root: edit(root / "meta/vla_rl.json", headers=[{"env_name": "x", "colour": "red"}]), "vla_rl.json cannot be read"),
    (lambda root: edit(root / "meta/vla_rl.json", episodes=[{"header": 7}] * 3), "vla_rl.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_ends_in_one_line_that_names_the_file(dataset: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(dataset)
    with pytest.raises(DatasetError, match=message) as caught:
        list(read_episodes(dataset))
    assert str(dataset) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: edit(root / "meta/vla_rl.json", episodes=[{"header": 0}] * 3), "vla_rl.json cannot be read"),
        (lambda root: edit(root / "meta/vla_rl.json", headers=3), "vla_rl.json cannot be read"),
        (lambda root: edit(root / "meta/info.json", features=["action"]), "info.json cannot be read"),
    ],
)
def test_a_description_of_damage_is_one_line(dataset: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(dataset)
    with pytest.raises(DatasetError, match=message) as caught:
        dataset_info(dataset)
    assert str(dataset) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda root: edit(root / "meta/stats.json", action={"min": [0.0]}), "stats.json lacks count, max"),
        (lambda root: edit(root / "meta/info.json", total_frames=40), "there are 36 steps, info.json says 40"),
        (lambda root: rewrite(root / DATA, lambda t: t.append_column("x", t["index"])), "other columns than info.json: x"),
        (
            lambda root: rewrite(root / DATA, lambda t: t.set_column(t.column_names.index("timestamp"), "timestamp", t["index"])),
            "timestamps are not frame_index / fps",
        ),
        (lambda root: rewrite(root / "meta/tasks.parquet", lambda table: table.replace_schema_metadata()), "not the instruction"),
    ],
)  # fmt: skip
def test_the_schema_check_finds(dataset: Path, change: Callable[[Path], object], finding: str) -> None:
    change(dataset)
    assert any(finding in found for found in check_lerobot(dataset)), check_lerobot(dataset)
