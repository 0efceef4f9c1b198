"""One Opus packet at a time, in and out: the typed shim around the codec libraries.

Decoding is sphn's (80 us for 80 ms, holding the interpreter lock). Encoding is libopus through PyAV, without the lock:
`docs/adr/0003` has the measurement.
"""

import fractions
from typing import Final

import av
import av.error
import numpy as np
import sphn
from av.audio.codeccontext import AudioCodecContext

from serve_app.audio.frames import Pcm
from serve_app.audio.ogg import PageWriter
from serve_app.errors import ConfigError
from serve_app.units import SAMPLE_RATE_HZ

PACKET_SAMPLES: Final = 960
"""40 ms at 24 kHz: what Kyutai's own servers send."""
BIT_RATE_BPS: Final = 40_000
"""Speech then sounds about as near to the original as from sphn's writer in voice mode, which needs 10 kb/s less (ESTOI
.9815 and .983; `bench.opus` measures it)."""
COMPLEXITY: Final = 8
"""Of 10. From 5 to 8 ESTOI rises from .975 to .9815 and 80 ms cost 60 us more; 9 and 10 give no more."""


class PacketError(Exception):
    """The decoder refuses a packet. Never leaves this room."""


class Decoder:
    """Mono PCM at 24 kHz from packets; stereo is mixed down. After an error: throw it away (a new one costs 4 us)."""

    def __init__(self) -> None:
        self._reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
        self._writer = PageWriter(serial=1)

    def decode(self, packet: bytes) -> Pcm:
        """Args: one packet that is not empty. The reader wants Ogg, so it gets a page of our own making: the same PCM
        to the bit, and nothing of a stranger's framing reaches it. It needs no header pages.

        Raises:
            PacketError: the library refuses the packet, or made something that is not finite of it.
        """
        try:
            pcm: Pcm = np.asarray(self._reader.append_bytes(self._writer.page([packet], granule=0)), np.float32)
        except (ValueError, RuntimeError, OSError) as error:
            raise PacketError(str(error)) from error
        if not np.isfinite(pcm).all():
            raise PacketError("not finite")
        return pcm


class Encoder:
    """Packets of 40 ms from mono PCM at 24 kHz, each as soon as its samples are there.

    Restricted low delay (CELT alone) looks 2.5 ms ahead where voice mode looks 6.5, and costs the same for every
    sound. Measured for 80 ms on one core: this 225 us, voice mode 780 us, sphn's writer 890 us. A thread beside this
    one goes on; beside sphn's writer it waits for the interpreter lock. Not thread-safe.

    Raises:
        ConfigError: the installed PyAV was built without libopus.
    """

    def __init__(self, bit_rate_bps: int = BIT_RATE_BPS, application: str = "lowdelay") -> None:
        try:
            codec = AudioCodecContext.create("libopus", "w")
        except av.error.FFmpegError as error:
            raise ConfigError("PyAV", "built without libopus; install the wheel") from error
        codec.sample_rate = SAMPLE_RATE_HZ
        codec.layout = "mono"
        codec.format = "flt"
        codec.bit_rate = bit_rate_bps
        codec.time_base = fractions.Fraction(1, SAMPLE_RATE_HZ)
        codec.options = {
            "application": application,
            "frame_duration": str(1_000 * PACKET_SAMPLES // SAMPLE_RATE_HZ),
            "compression_level": str(COMPLEXITY),
        }
        codec.open()
        self._codec = codec
        self._samples = 0

    @property
    def head(self) -> bytes:
        """The identification header, with the true pre-skip."""
        return bytes(self._codec.extradata or b"")

    def encode(self, pcm: Pcm) -> bytes:
        """Args: ``float32[960]``. Returns one packet, at once."""
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = self._samples
        self._samples += len(pcm)
        (packet,) = self._codec.encode(frame)
        return bytes(packet)
