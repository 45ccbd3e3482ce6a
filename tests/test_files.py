from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continuad.errors import ImageError
from continuad.images import find_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_is_searched_whole_in_natural_order(tmp_path: Path) -> None:
    touch(
        tmp_path, "img10.png", "img2.PNG", "Img1.jpeg", "b2/x.tif", "b10/x.webp", "notes.txt", "img2.png.txt"
    )
    touch(tmp_path, ".hidden.png", ".git/x.png", "b2/.a.png", "b2/c/7.BMP", "schön 3.pgm", "png")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == [
        "b2/c/7.BMP", "b2/x.tif", "b10/x.webp", "Img1.jpeg", "img2.PNG", "img10.png", "schön 3.pgm",
    ]  # fmt: skip
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_a_file_and_a_pattern(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/1.png",
        "a/11.png",
        "a/2.png",
        "a/b/3.png",
        "a/4.txt",
        "odd.dat",
        "set[1]/5.png",
        "[x].png",
    )
    assert find_images(tmp_path / "odd.dat") == [tmp_path / "odd.dat"]
    names = [path.name for path in find_images(str(tmp_path / "a/*"))]
    assert names == ["1.png", "2.png", "11.png"]
    assert {path.name for path in find_images(tmp_path / "a/**/*.png")} == {
        "1.png",
        "2.png",
        "3.png",
        "11.png",
    }
    assert find_images(tmp_path / "set[1]") == [tmp_path / "set[1]" / "5.png"]
    assert find_images(tmp_path / "[x].png") == [tmp_path / "[x].png"]


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"No image .*png, jpg, jpeg, bmp, tif, tiff, webp, ppm, pgm"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match=r"\*\.png"):
        find_images(tmp_path / "*.png")
    with pytest.raises(ImageError, match="no file or folder"):
        find_images(tmp_path / "gone")
    with pytest.raises(ImageError, match="web address"):
        find_images("https://example.com/images")
    for wrong in ("x" * 5000, "a\0b"):
        with pytest.raises(ImageError):
            find_images(wrong)


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=30))
@settings(deadline=None, max_examples=20)
def test_natural_order_is_the_order_of_numbers(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    root = tmp_path_factory.mktemp("natural")
    touch(root, *(f"part {number} top.png" for number in numbers))
    assert [path.name for path in find_images(root)] == [
        f"part {number} top.png" for number in sorted(numbers)
    ]
