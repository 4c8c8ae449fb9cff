"""RLDS in TFDS's layout, parsed by protobuf's and tensorboard's own code, and damage."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_sets import write_small
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New, masked_crc32c

from vla_rl.data import DatasetError, Demonstration
from vla_rl.data.dataset import ReadOptions
from vla_rl.data.formats import convert, dataset_info, read_episodes
from vla_rl.data.rlds.check import check_rlds
from vla_rl.data.rlds.records import decode_example, encode_example, masked_crc, read_records, write_record

SHARD = "1.0.0/small_set-train.tfrecord-00000-of-00001"


def example_class() -> type:
    """`tf.train.Example`, from the definition in TensorFlow's documentation, through protobuf's own compiler of messages."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> descriptor_pb2.DescriptorProto:
        made = file.message_type.add(name=name)
        for label, number, kind, repeated, type_name in fields:
            made.field.add(
                name=label, number=number, type=kind, type_name=type_name or None,  # type: ignore[arg-type]
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
            )  # fmt: skip
        return made

    message("BytesList", ("value", 1, kinds.TYPE_BYTES, True, ""))
    message("FloatList", ("value", 1, kinds.TYPE_FLOAT, True, ""))
    message("Int64List", ("value", 1, kinds.TYPE_INT64, True, ""))
    lists = (("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List"))
    message("Feature", *((name, number, kinds.TYPE_MESSAGE, False, f".t.{kind}") for name, number, kind in lists))
    features = message("Features", ("feature", 1, kinds.TYPE_MESSAGE, True, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".t.Feature", label=kinds.LABEL_OPTIONAL)
    message("Example", ("features", 1, kinds.TYPE_MESSAGE, False, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = example_class()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Demonstration]]:
    folder = tmp_path_factory.mktemp("rlds")
    demonstrations = write_small(folder / "source")
    convert(folder / "source", folder / "small_set", "rlds")
    return folder / "small_set", demonstrations


@pytest.fixture
def dataset(tmp_path: Path, written: tuple[Path, list[Demonstration]]) -> Path:
    """A copy to damage."""
    for file in written[0].rglob("*.*"):
        if file.is_file():
            place = tmp_path / "small_set" / file.relative_to(written[0])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path / "small_set"


def test_known_checksums() -> None:
    # RFC 3720, appendix B.4, in the mask of TFRecord: rotated right by 15 bits, plus a constant.
    for data, crc in ((bytes(32), 0x8A9136AA), (bytes([255] * 32), 0x62A8AB43), (bytes(range(32)), 0x46DD794E)):
        assert masked_crc(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@given(st.binary(max_size=200))
def test_checksums_are_those_of_tensorboard(data: bytes) -> None:
    assert masked_crc(data) == masked_crc32c(data)


@given(
    st.lists(st.binary(max_size=20), max_size=4),
    arrays(np.float32, st.integers(0, 9), elements=st.floats(width=32, allow_nan=False)),
    arrays(np.int64, st.integers(0, 9)),
)
def test_protobuf_reads_our_messages_and_we_read_its(texts: list[bytes], floats: np.ndarray, integers: np.ndarray) -> None:
    features = {"steps/text": texts, "f": floats, "i": integers}
    theirs = EXAMPLE()
    theirs.ParseFromString(encode_example(features))  # type: ignore[attr-defined]
    feature = theirs.features.feature  # type: ignore[attr-defined]
    assert set(feature) == set(features)
    assert list(feature["steps/text"].bytes_list.value) == texts
    assert np.array(feature["f"].float_list.value, np.float32).tobytes() == floats.tobytes()
    assert list(feature["i"].int64_list.value) == integers.tolist()
    ours = decode_example(theirs.SerializeToString())  # type: ignore[attr-defined]
    assert ours["steps/text"] == texts
    assert np.asarray(ours["f"]).tobytes() == floats.tobytes() and np.asarray(ours["i"]).tolist() == integers.tolist()


def test_others_read_the_episodes(written: tuple[Path, list[Demonstration]]) -> None:
    path, demonstrations = written
    reader = PyRecordReader_New(str(path / SHARD))
    for demo in demonstrations:
        reader.GetNext()  # checks both checksums
        example = EXAMPLE()
        example.ParseFromString(reader.record())  # type: ignore[attr-defined]
        feature = example.features.feature  # type: ignore[attr-defined]
        assert np.array(feature["steps/action"].float_list.value, np.float32).tobytes() == demo.actions.tobytes()
        assert np.array(feature["steps/observation/state"].float_list.value, np.float32).tobytes() == demo.proprio.tobytes()
        last = len(demo) - 1
        assert list(feature["steps/is_first"].int64_list.value) == [1] + [0] * last
        assert list(feature["steps/is_last"].int64_list.value) == [0] * last + [1]
        assert list(feature["steps/is_terminal"].int64_list.value) == [0] * last + [int(demo.success)]
        assert set(feature["steps/language_instruction"].bytes_list.value) == {demo.instruction.encode()}
        pictures = feature["steps/observation/wrist_image"].bytes_list.value
        shown = np.stack([cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in pictures])
        assert np.abs(shown[..., ::-1].astype(int) - demo.images["robot0_eye_in_hand"][:, ::-1, ::-1]).mean() < 3
    with pytest.raises(OutOfRangeError):
        reader.GetNext()


def test_the_description_is_tfds_s(written: tuple[Path, list[Demonstration]]) -> None:
    info = json.loads((written[0] / "1.0.0/dataset_info.json").read_text())
    assert (info["name"], info["version"], info["fileFormat"]) == ("small_set", "1.0.0", "tfrecord")
    (split,) = info["splits"]
    assert (split["name"], split["shardLengths"], int(split["numBytes"])) == (
        "train", ["3"], (written[0] / SHARD).stat().st_size,
    )  # fmt: skip
    features = json.loads((written[0] / "1.0.0/features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]
    assert steps["pythonClassName"].endswith("dataset_feature.Dataset")
    inner = steps["sequence"]["feature"]["featuresDict"]["features"]
    assert inner["action"]["tensor"] == {"shape": {"dimensions": ["7"]}, "dtype": "float32", "encoding": "none"}
    image = inner["observation"]["featuresDict"]["features"]["image"]["image"]
    assert image == {"shape": {"dimensions": ["32", "32", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}


def test_sets_of_others_are_read(dataset: Path) -> None:
    records = []
    for data in read_records(dataset / SHARD):
        example = decode_example(data)
        del example["episode_metadata/vla_rl"]
        records.append(encode_example(example))
    with (dataset / SHARD).open("wb") as file:
        for record in records:
            write_record(file, record)
    info = dataset_info(dataset, ReadOptions(stated={"fps": 20.0}))
    assert info.assumed == ("orientation", "gripper", "frames") and info.successes is None
    assert [len(demo) for _, demo in read_episodes(dataset)] == [12, 15, 9]


@pytest.mark.parametrize("key", ["steps/language_instruction", "episode_metadata/vla_rl"])
def test_records_that_info_cannot_understand_end_in_one_line(dataset: Path, key: str) -> None:
    records = [decode_example(data) for data in read_records(dataset / SHARD)]
    with (dataset / SHARD).open("wb") as file:
        for example in records:
            del example[key]
            write_record(file, encode_example(example | ({key: [b"{"]} if key.endswith("vla_rl") else {})))
    for attempt in (lambda: dataset_info(dataset), lambda: convert(dataset, dataset.parent / "other", "hdf5")):
        with pytest.raises(DatasetError, match=r"small_set, episode 0 cannot be understood") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_names_that_tfds_cannot_take(written: tuple[Path, list[Demonstration]], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="TFDS takes names of small letters"):
        convert(written[0], tmp_path / "Small-Set", "rlds")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / SHARD).write_bytes((root / SHARD).read_bytes()[:-100]), "is truncated in record 2"),
    (lambda root: flip(root / SHARD, 500), "record 0 is damaged"),
    (lambda root: flip(root / SHARD, 0), "the length of record 0 is damaged"),
    (lambda root: (root / SHARD).write_bytes(b"something else altogether"), "it is no TFRecord file"),
    (lambda root: (root / SHARD).write_bytes(b""), "holds 0 of its 3 episodes"),
    (lambda root: (root / SHARD).unlink(), "is missing"),
    (lambda root: (root / "1.0.0/dataset_info.json").unlink(), "lacks dataset_info.json"),
    (lambda root: (root / "1.0.0/dataset_info.json").write_text("{"), "dataset_info.json cannot be read"),
    (lambda root: (root / "1.0.0/dataset_info.json").write_text("{}"), "dataset_info.json cannot be understood"),
    (lambda root: (root / "1.0.0/features.json").write_text("{}"), "steps/action of shape None"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_ends_in_one_line_that_names_the_file(dataset: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(dataset)
    with pytest.raises(DatasetError, match=message) as caught:
        list(read_episodes(dataset))
    assert str(dataset) in str(caught.value) and "\n" not in str(caught.value)


def test_records_that_are_no_episodes(dataset: Path) -> None:
    for record in (b"\xff" * 9, encode_example({"x": [b"1"]})):
        with (dataset / SHARD).open("wb") as file:
            write_record(file, record)
        with pytest.raises(DatasetError, match="record 0 is no RLDS episode"):
            list(read_episodes(dataset))
        assert check_rlds(dataset)
