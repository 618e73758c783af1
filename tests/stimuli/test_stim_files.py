from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.sets import find_stimuli
from dnnbrain_app.stimuli.stim_files import format_stim_file, list_stimuli, read_stim_file

HEADER = "type=image\npath={path}\ntitle=two pictures\n"
ROWS = (
    "data=onset,stimID,label,condition,note\n0,a.JPEG,1,cat,first = best\n\n2.5,faces/b.png,0,dog,\n4,a.JPEG,1,cat,\n"
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_a_file_leads_to_a_set(folder: Path) -> None:
    file = read_stim_file(write(folder.parent / "x.stim.csv", HEADER.format(path=folder) + ROWS))
    assert (file.kind, file.path, dict(file.about)) == ("image", folder, {"title": "two pictures"})
    assert file.names == ("a.JPEG", "faces/b.png")
    assert file.rows["stimID"].tolist() == ["a.JPEG", "faces/b.png", "a.JPEG"]
    assert file.rows["note"].tolist() == ["first = best", "", ""]
    assert file.table.columns.tolist() == ["stimID", "label", "condition"]  # onset and note differ between repeats
    found = find_stimuli(file.names, file.path, table=file.table)
    assert found.attributes["label"].tolist() == [1.0, 0.0]
    assert found.attributes["condition"].tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "\ufeff" + text,  # byte order mark
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", ",,,,\n").replace("note,,,,", "note,,"),  # a spreadsheet fills lines up
        lambda text: text.replace(",", " , ").replace("type=", " type = "),
        lambda text: text.replace("a.JPEG", '"a.JPEG"').replace(
            "data=onset,stimID,label", '"data=onset",stimID,"label"'
        ),
        lambda text: text.replace("title=two pictures\n", "\n"),
    ],
)
def test_what_editors_do_to_a_file(folder: Path, spoil: Any) -> None:
    text = spoil(HEADER.format(path=folder) + ROWS)
    file = read_stim_file(write(folder.parent / "x.stim.csv", text))
    assert file.names == ("a.JPEG", "faces/b.png")
    assert file.path == folder
    assert file.rows.columns.tolist() == ["stimID", "onset", "label", "condition", "note"]
    assert file.rows["onset"].tolist() == ["0", "2.5", "4"]


def test_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = folder.parent / "a=b, c"
    folder.rename(odd)
    path = folder.parent / "x.stim.csv"
    for written in (str(odd), odd.name):  # beside the file
        assert read_stim_file(write(path, HEADER.format(path=written) + ROWS)).path == odd
    (odd / "deep").mkdir()
    path = write(odd / "deep" / "x.stim.csv", HEADER.format(path="./a=b, c") + ROWS)
    file = read_stim_file(path)
    assert file.path == odd / "deep" / "a=b, c"  # where the error will say that it should be
    with pytest.raises(MissingInputError, match=r"deep/a=b, c: does not exist; name it with --stimuli-dir"):
        find_stimuli(file.names, file.path)
    monkeypatch.chdir(odd.parent)
    assert read_stim_file(path).path.resolve() == odd
    path = write(path, HEADER.format(path="D:\\stimuli") + ROWS)
    assert read_stim_file(path, odd).path == odd


def test_frames_of_a_video(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\0")
    path = write(tmp_path / "x.stim.csv", "type=video\npath=film.mp4\ndata=stimID,onset\n1,0\n30,1\n")
    file = read_stim_file(path)
    assert (file.kind, file.path, file.names) == ("video", tmp_path / "film.mp4", ("1", "30"))
    for number in ("0", "1.5", "x", "-3"):
        write(path, f"type=video\npath=film.mp4\ndata=stimID\n{number}\n")
        with pytest.raises(BadDataError, match=rf"type=video, but stimID '{number}' is not the number of a frame"):
            read_stim_file(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no line data="),
        ("type=image\npath=.\n", "has no line data="),
        ("stimID,label\na.png,1\n", "line 1: 'stimID,label' should be key=value; is it a .stim.csv file?"),
        ("type=sound\npath=.\ndata=stimID\na.wav\n", "type=sound; should be image, video or video_clip"),
        ("path=.\ndata=stimID\na.png\n", "type=; should be"),
        ("type=image\ndata=stimID\na.png\n", "has no line path="),
        ("type=image\npath=.\ndata=label\n1\n", "line 3: data=label; should name stimID"),
        ("type=image\npath=.\ndata=stimID,x,x\na,1,2\n", "each column once"),
        ("type=image\npath=.\ndata=stimID\n", "no stimuli after the line data="),
        ("type=image\npath=.\ndata=stimID,label\na.png\n", "line 4: 1 values for 2 columns (stimID, label)"),
        ("type=image\npath=.\ndata=stimID,label\na.png,1\nb,c.png,1\n", "line 5: 3 values for 2 columns"),
        ("type=image\npath=.\ndata=stimID,label\n,1\n", "a row without stimID"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(BadDataError) as caught:
        read_stim_file(write(tmp_path / "x.stim.csv", text))
    assert f"{tmp_path / 'x.stim.csv'}" in str(caught.value)
    assert part in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"x\.stim\.csv: does not exist"):
        read_stim_file(tmp_path / "x.stim.csv")
    (tmp_path / "x.stim.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(BadDataError, match="cannot be read as text"):
        read_stim_file(tmp_path / "x.stim.csv")
    with pytest.raises(BadDataError, match="cannot be read as text"):
        read_stim_file(tmp_path)


def test_what_is_written_is_read(folder: Path) -> None:
    columns = {"stimID": ["a.JPEG", "x, y.png"], "value": [0.5, 2], "label": [1, 2]}
    text = format_stim_file("image", folder, columns, {"title": "top = 2"})
    assert text.splitlines() == [
        "type=image",
        f"path={folder}",
        "title=top = 2",
        "data=stimID,value,label",
        "a.JPEG,0.5,1",
        '"x, y.png",2,2',
    ]
    file = read_stim_file(write(folder.parent / "x.stim.csv", text))
    assert (file.kind, file.path, dict(file.about)) == ("image", folder, {"title": "top = 2"})
    assert file.rows.to_dict("list") == {"stimID": ["a.JPEG", "x, y.png"], "value": ["0.5", "2"], "label": ["1", "2"]}
    with pytest.raises(BadDataError, match="a line break within a name"):
        format_stim_file("image", folder, {"stimID": ["a\nb"]})


def test_listing_a_folder(folder: Path, paint: Any) -> None:
    for name in ("z/c.TIF", "z/y/d.gif", ".hidden/e.png", "z/._c.png", "thumbnails/f.png", "__MACOSX/g.png"):
        paint(folder / name)
    for name in ("z/film.MP4", "notes.txt", "stimuli.tsv", "Thumbs.db", "sound.wav"):
        (folder / name).write_text("hello")
    (folder / "annexed.png").symlink_to("gone")
    (folder / "again").symlink_to("faces")
    assert list_stimuli(folder) == ["a.JPEG", "annexed.png", "faces/b.png", "z/c.TIF", "z/film.MP4", "z/y/d.gif"]
    (folder / "z" / "away").symlink_to(folder.parent)
    with pytest.raises(BadDataError, match=r"'z/away' is a link that leads out of the folder"):
        list_stimuli(folder)


def test_listing_links_that_lead_out(folder: Path, paint: Any) -> None:
    paint(folder.parent / "secret.png")
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(BadDataError, match=r"'out\.png' is a link that leads out"):
        find_stimuli(list_stimuli(folder), folder)


def test_listing_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no image or video in it \(.*\.mp4.*\.png"):
        list_stimuli(tmp_path)
    with pytest.raises(MissingInputError, match=r"nowhere: does not exist"):
        list_stimuli(tmp_path / "nowhere")
