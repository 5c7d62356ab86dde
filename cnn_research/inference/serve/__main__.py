"""Serve predictions of an exported network over HTTP.

python launch.py --mode=export --workdir=runs/a
python -m cnn_research serve runs/a/export
curl -F files=@image.jpg http://127.0.0.1:8000/predict
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from cnn_research.core.errors import UsageError, UserError, install_command, run_command


def main(words: Sequence[str]) -> None:
    """Serve the export given by `words` until a signal arrives."""
    parser = argparse.ArgumentParser(
        prog="python -m cnn_research serve",
        description="Serve predictions of an exported network over HTTP.",
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="folder of an export")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for any free")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces"
    )
    parser.add_argument(
        "--max-batch", type=int, default=16, help="maximum number of images in a forward pass"
    )
    parser.add_argument(
        "--max-wait",
        type=float,
        default=3,
        help="maximum time in milliseconds that an image waits for others to fill a batch",
    )
    parser.add_argument("--max-megabytes", type=float, default=16, help="maximum request size")
    parser.add_argument(
        "--max-requests", type=int, default=64, help="maximum number of concurrent requests"
    )
    parser.add_argument("--max-seconds", type=float, default=30, help="maximum time per request")
    options = parser.parse_args(words)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Until uvicorn handles signals. Python ignores exceptions in some places, such as JAX's
        # callback at garbage collection, and the server would continue.
        signal.signal(number, lambda *_: os._exit(0))
    serve(options)


def serve(options: argparse.Namespace) -> None:
    """Serve until a signal arrives.

    Raises `UserError` if the port is in use, or the folder has no valid export.
    """
    for name in ("max_batch", "max_megabytes", "max_requests", "max_seconds"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0")
    if options.max_wait < 0:
        raise UsageError("--max-wait must be 0 or more")
    # Bound before the slow imports and compilations, so that a port in use fails at once.
    listener = bound(options.host, options.port)
    try:
        import uvicorn

        from cnn_research.inference.serve.app import application
    except ImportError as error:
        raise UserError(f"{error.name} is needed to serve: {install_command('serve')}") from None
    from cnn_research.core.distributed import start_devices
    from cnn_research.inference.exported import open_export
    from cnn_research.inference.serve.batching import compiled
    from cnn_research.inference.serve.limits import Connection, Limits

    start_devices()
    network = open_export(options.export)
    app = application(
        network,
        compiled(network, options.max_batch),
        limits=Limits(options.max_megabytes, options.max_requests, options.max_seconds),
        max_batch=options.max_batch,
        wait=options.max_wait / 1000,
    )
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=options.max_seconds,
        timeout_graceful_shutdown=5,
    )
    # Connections are accepted only now that every batch size is compiled.
    listener.listen()
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if not ipaddress.ip_address(host).is_loopback:
        print(
            f"warning: any machine that can reach {host} can send unencrypted requests; the "
            "default, --host=127.0.0.1, accepts only this machine",
            file=sys.stderr,
        )
    print(f"Serving on {address} (stop with Ctrl-C)", flush=True)
    uvicorn.Server(config).run([listener])


def bound(host: str, port: int) -> socket.socket:
    """Bind a socket to an address; it rejects connections until it listens.

    Raises:
        UsageError: the address is invalid.
        UserError: it is in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        if os.name == "posix":  # elsewhere it would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (socket.gaierror, OverflowError) as error:
        raise UsageError(f"--host={host} --port={port} is not an address ({error})") from None
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} of {host} ({error.strerror}): choose another --port, "
            "or 0 for any free one"
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(run_command(main))
