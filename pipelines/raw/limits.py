"""How large untrusted files may be, checked before anything is decoded, and why."""

MAX_PIXELS = 64_000_000
"""Of an image: four times a 16-megapixel photo. Anything larger is refused as a decompression bomb."""

MAX_VIDEO_PIXELS = 36_000_000
"""Of a frame of a video: 8K, 7680 x 4320, and a little more. Narrower than that of images, because a decoder holds up
to 17 frames of which others are made."""

MAX_VIDEO_FRAMES = 1_000_000
"""Of a video: four and a half hours at 60 frames per second. When each frame is shown is held in memory."""
