"""Options of the server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medusa_trt.errors import ServingError, check_range
from medusa_trt.files import read_text
from medusa_trt.types_of_options import check_types


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Where the server listens, and what it accepts.

    Attributes:
        host: address to listen on; 127.0.0.1 accepts connections of this machine alone, 0.0.0.0 of
            others too.
        port: port to listen on; 0 chooses a free one.
        max_sequences: most replies that are made at the same time.
        max_queue: most replies that wait until they can be made; a request beyond them gets the
            status 429.
        api_key_file: a file with a key on each line, of which a client must send one (default:
            clients need none).
        model_name: what clients call the model (default: the bundle's name for it).
        max_body_bytes: largest body of a request; a larger one gets the status 413.
        timeout_s: most seconds for a request, from its first byte to its last token; then it gets
            the status 408.
        client_timeout_s: most seconds that a client may take to send the headers of a request, or
            may leave a reply unread; then its connection is closed.
        grace_s: seconds that running replies get after SIGTERM or Ctrl-C.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_sequences: int = 4
    max_queue: int = 64
    api_key_file: Annotated[Path | None, "--api-key-file FILE"] = None
    model_name: Annotated[str | None, "--model-name NAME"] = None
    max_body_bytes: int = 4_000_000
    timeout_s: float = 600.0
    client_timeout_s: float = 60.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        check_types(self, ServingError)
        check_range(self, ServingError, "port", 0, 65535)
        check_range(self, ServingError, "max_sequences max_body_bytes", 1)
        check_range(self, ServingError, "max_queue grace_s", 0)
        check_range(self, ServingError, "timeout_s client_timeout_s", 0.1)

    def read_api_keys(self) -> tuple[bytes, ...]:
        """Reads the keys, of which there is none without a file.

        Raises:
            ServingError: the file cannot be read, or holds no key.
        """
        if self.api_key_file is None:
            return ()
        lines = read_text(self.api_key_file, ServingError).split()
        if not lines:
            raise ServingError(f"{self.api_key_file} holds no key: write one on each line")
        return tuple(line.encode() for line in lines)
