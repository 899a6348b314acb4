"""FFmpeg, for files that somebody else made: it opens containers and codecs of the lists below, and reads from the file
that it is given and from nothing else. Playlists, lists of files, subtitles, session descriptions and references to
other files are refused unread.
"""

import errno
import io

import av

from pipelines.raw.limits import MAX_VIDEO_PIXELS

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif,yuv4mpegpipe"
CODECS = (
    "h264,hevc,libdav1d,av1,libvpx-vp9,vp9,libvpx,vp8,mpeg4,mpeg2video,mpeg1video,h263,h263p,flv,msmpeg4v1,msmpeg4,"
    "msmpeg4v2,wmv1,wmv2,wmv3,vc1,theora,mjpeg,prores,dnxhd,ffv1,huffyuv,ffvhuff,utvideo,rawvideo,wrapped_avframe,png,"
    "gif,dvvideo,jpeg2000,v210"
)
OPTIONS = {
    "format_whitelist": FORMATS,
    "codec_whitelist": CODECS,
    "protocol_whitelist": "none",  # not one: what is read comes from the file object
    "enable_drefs": "0",  # a .mov may name other files that hold its frames
    "max_pixels": str(MAX_VIDEO_PIXELS),
}

# What FFmpeg says about damage is caught in `video.py`, each time it says it.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)


def open_container(file: io.IOBase) -> av.container.InputContainer:
    """What is in a binary file that can seek. av.error.FFmpegError for anything else than a video of these kinds."""
    return av.open(_Unnamed(file), options=OPTIONS, metadata_errors="replace")


class _Unnamed:
    """A file without its name: FFmpeg would guess by it what it is."""

    def __init__(self, file: io.IOBase) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int) -> int:
        """A damaged file may send FFmpeg to a place where no file can be; that is an error as FFmpeg has them."""
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL
