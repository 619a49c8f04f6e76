"""How the size of an image decides the shape of a network."""

from typing import Any


def levels(height: int) -> int:
    """How often the height is halved down to 4 to 7 pixels; once at least."""
    return max((height // 4).bit_length() - 1, 1)


def lookup_size(attribute: str, table: dict[int, Any], size: int) -> Any:
    """The default of an attribute for an image height: the entry of the greatest height that is not above it."""
    if size < min(table):
        raise ValueError(
            f"{attribute}: has a default from image height {min(table)} on, not for {size}"
        )
    return table[max(height for height in table if height <= size)]


def low_resolution(shape: tuple[int, ...], doublings: int) -> tuple[int, int]:
    """Height and width of ``shape[h, w, c]`` before so many doublings.

    Raises:
      ValueError: they do not divide the size.
    """
    height, width = shape[:2]
    scale = 2**doublings
    if height % scale or width % scale:
        raise ValueError(
            f"{doublings} blocks scale {scale} times, which must divide the image size "
            f"{height}x{width}"
        )
    return height // scale, width // scale


def check_attention(resolution: int, present: list[int]) -> None:
    """Raises ValueError unless the resolution is 0 or that of some block's output."""
    if resolution and resolution not in present:
        raise ValueError(f"attention={resolution}: must be 0 or a block's resolution, {present}")
