"""Videos are read back as they were written."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from vla_rl import video
from vla_rl.video import GREEN, RED, VideoError, grid, outline, upscale, write_video


def flat(*colours: tuple[int, int, int], height: int = 32, width: int = 48) -> np.ndarray:
    """One frame of each colour."""
    return np.stack([np.full((height, width, 3), colour, np.uint8) for colour in colours])


def read(path: Path) -> tuple[av.VideoStream, np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


@pytest.mark.parametrize("fps", [10, 20.0, 7.5, 29.97])
def test_an_h264_video_has_the_frames_that_were_given(tmp_path: Path, fps: float) -> None:
    frames = flat((200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128))
    stream, decoded = read(write_video(tmp_path / "new" / "v.mp4", frames, fps))
    assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["v.mp4"]


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.mp4", flat((1, 2, 3), (4, 5, 6)), 10).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (2, 3), (128, 129)])
def test_odd_sizes_are_padded_with_their_neighbours(tmp_path: Path, height: int, width: int) -> None:
    _, decoded = read(write_video(tmp_path / "v.mp4", flat((250, 250, 250), height=height, width=width), 10))
    assert decoded.shape == (1, height + height % 2, width + width % 2, 3)
    assert decoded.min() > 230  # a black border would show


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 0, 8, 3), np.uint8),
    ],
)  # fmt: skip
def test_other_frames_are_refused_with_their_shape(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(VideoError, match="uint8 frames"):
        write_video(tmp_path / "v.mp4", frames, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(VideoError, match="frames a second"):
        write_video(tmp_path / "v.mp4", flat((0, 0, 0)), fps)


def test_a_failure_leaves_the_old_video_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", flat((9, 9, 9)), 10)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail)
    with pytest.raises(OSError, match="no space"):
        write_video(path, flat((1, 1, 1)), 10)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("codec", ["libvpx-vp9", "mpeg4"])
def test_other_encoders_are_used_where_h264_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, codec: str
) -> None:
    monkeypatch.setattr(video, "CODECS", ("no-such-encoder", codec))
    with caplog.at_level(logging.WARNING):
        _, decoded = read(write_video(tmp_path / "v.mp4", flat((200, 30, 30), (30, 200, 30)), 10))
    assert decoded.shape == (2, 32, 48, 3) and codec in caplog.text
    monkeypatch.setattr(video, "CODECS", ("no-such-encoder",))
    with pytest.raises(VideoError, match="no-such-encoder"):
        write_video(tmp_path / "w.mp4", flat((0, 0, 0)), 10)


def test_enlarging_takes_a_whole_factor() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 100, 120, 3), dtype=np.uint8)
    nearest = upscale(frames, 256, "nearest")
    assert nearest.shape == (2, 300, 360, 3)
    np.testing.assert_array_equal(nearest[:, 1::3, 1::3], frames)
    assert upscale(frames, 256, "lanczos").shape == (2, 300, 360, 3)
    np.testing.assert_array_equal(upscale(frames, 100), frames)


def test_the_outline_tells_the_outcome() -> None:
    frames = flat((7, 7, 7))
    for success, colour in ((True, GREEN), (False, RED)):
        framed = outline(frames, success, width=3)
        assert framed.shape == (1, 38, 54, 3)
        np.testing.assert_array_equal(framed[:, 3:-3, 3:-3], frames)
        border = np.ones((38, 54), bool)
        border[3:-3, 3:-3] = False
        assert (framed[0][border] == colour).all()


def test_a_grid_holds_the_last_frame_of_shorter_videos() -> None:
    short, long, small = flat((10, 0, 0)), flat((0, 20, 0), (0, 30, 0)), flat((0, 0, 40), height=16, width=16)
    tiled = grid([short, long, small])
    assert tiled.shape == (2, 64, 96, 3)  # two columns and two rows of 32 x 48
    assert (tiled[:, :32, :48] == (10, 0, 0)).all()
    assert (tiled[0, :32, 48:] == (0, 20, 0)).all() and (tiled[1, :32, 48:] == (0, 30, 0)).all()
    assert (tiled[:, 32:48, :16] == (0, 0, 40)).all() and (tiled[:, 48:] == 0).all() and (tiled[:, 32:, 48:] == 0).all()
    assert grid([short, short], columns=1).shape == (1, 64, 48, 3)
    with pytest.raises(VideoError, match="at least one"):
        grid([])
