"""`medusa-trt serve`: an HTTP server with OpenAI's interface."""

from dataclasses import dataclass, field

from medusa_trt.cli.arguments import BundleArguments, SessionArguments
from medusa_trt.cli.parser import Verb
from medusa_trt.errors import require_extra
from medusa_trt.serving.options import ServingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments(BundleArguments):
    """Answer requests over HTTP as OpenAI's API does: chat, completions, models.

    Attributes:
        server: where it listens, and what it accepts.
        session: how the bundle is run.
    """

    server: ServingOptions = field(default_factory=ServingOptions)
    session: SessionArguments = field(default_factory=SessionArguments)


def serve_bundle(arguments: ServeArguments) -> None:
    """Serves a bundle until SIGTERM or Ctrl-C."""
    with require_extra("serving", "serve"):
        from medusa_trt.serving.server import open_socket, serve, warn_if_open

    options = arguments.server
    options.read_api_keys()
    with open_socket(options) as opened:
        warn_if_open(options, opened.getsockname()[0])
        with arguments.session.open(arguments.bundle, options.max_sequences) as session:
            serve(session, options, opened)


VERBS = {"serve": Verb(ServeArguments, serve_bundle)}
