"""`preftune label`: the ranking app as one process on one store.

It refuses to be reached from elsewhere without TLS, as passwords would cross the network in the clear. While it runs it looks for
new prompts now and then, so that what is imported meanwhile is there to be judged without a restart.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from sqlalchemy import func, select

from preftune.data import tables
from preftune.data.store import Store
from preftune.errors import ConfigError, PreftuneError
from preftune.progress import counted
from preftune.web import auth
from preftune.web.app import create_app
from preftune.web.choosing import secret
from preftune.web.items import fill_items
from preftune.web.listening import listening, url_of
from preftune.web.passwords import name_key
from preftune.web.settings import LabelSettings, record_protocol

PORT = 8321
LOOK_EVERY_SECONDS = 20.0
SHUTDOWN_SECONDS = 5


def label(
    store: Path | str,
    settings: LabelSettings,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    owner: str | None = None,
    ask_password: Callable[[str], str] | None = None,
    behind_proxy: bool = False,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    say: Callable[[str], None],
) -> None:
    """Serve the ranking app until it is interrupted (Ctrl-C, SIGTERM).

    store: a path or URL; made where there is none. owner: the name of an owner; where nobody has it, ask_password(name) is called
    and an owner made. Without it, and where there is no owner yet, a link for the first one is said. behind_proxy: a proxy in front
    speaks TLS; its X-Forwarded headers are trusted from the addresses in FORWARDED_ALLOW_IPS (127.0.0.1). port 0: any free one.
    say: gets each line for the person who started it.
    Raises ConfigError where the app would be reached from elsewhere without TLS, and PreftuneError where the port is taken.
    """
    check_exposure(host, behind_proxy=behind_proxy, tls_cert=tls_cert, tls_key=tls_key)
    with Store.create(store) as opened, listening(host, port) as listener:
        url = url_of(host, listener.getsockname()[1], tls=tls_cert is not None)
        public = "https://YOUR-ADDRESS" if behind_proxy else url
        _let_owner_in(opened, owner, ask_password, public, say)
        record_protocol(opened, settings)
        made = fill_items(opened, settings)
        if made:
            say(f"{counted(made, 'new items')} to judge.")
        with opened.writer() as writer:
            key = bytes.fromhex(secret(writer.connection, "forms"))
        config = uvicorn.Config(
            create_app(opened, settings, secret=key),
            log_level="warning",
            access_log=False,
            server_header=False,
            http="h11",  # the other parser that uvicorn takes where it is installed, httptools, reads headers without end
            ws="none",
            proxy_headers=behind_proxy,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        with _filling(opened, settings), _stopping_in_order():
            say(f"Open {url} in a browser. Ctrl-C stops it; nothing is lost.")
            gc.collect()
            gc.freeze()  # what is loaded by now stays, so the collector need not walk through it while raters wait
            try:
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:
                say("Stopped.")


def check_exposure(host: str, *, behind_proxy: bool, tls_cert: Path | None, tls_key: Path | None) -> None:
    """Raise ConfigError where the app would be reached from elsewhere without TLS, or where only half of TLS is given."""
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("a certificate and its key go together", "--tls-cert, --tls-key", "Give both or neither.")
    for path, option in ((tls_cert, "--tls-cert"), (tls_key, "--tls-key")):
        if path is not None and not path.is_file():
            raise ConfigError("there is no such file", f"{option} {path}", "Give a file in PEM format.")
    if not (behind_proxy or tls_cert or _is_local(host)):
        raise ConfigError(
            "other machines would reach the app without encryption, and passwords and answers could be read on the way",
            f"--host {host}",
            "Give --tls-cert and --tls-key, or put a proxy with TLS in front and say --behind-proxy.",
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _let_owner_in(store: Store, name: str | None, ask: Callable[[str], str] | None, url: str, say: Callable[[str], None]) -> None:
    if name is not None:
        known = {name_key(person.name): person for person in auth.people(store)}.get(name_key(name))
        if known is None:
            if ask is None:
                raise ConfigError(f'there is no owner "{name}" and nobody to ask for a password', "--owner", "Start it in a terminal once.")
            auth.add_person(store, name, ask(name), "owner")
            say(f'"{name}" is an owner now.')
        elif known.role != "owner":
            raise ConfigError(f'"{name}" is a rater', "--owner", "Give another name.")
    elif not auth.has_owner(store):
        hours = round(auth.INVITATION_LIFE.total_seconds() / 3600)
        say(f"There is no owner yet. Become one (within {hours} hours): {url}/invite/{auth.first_invitation(store)}")


@contextmanager
def _stopping_in_order() -> Iterator[None]:
    # uvicorn ends its work and then raises the signal anew; SIGTERM would kill us there, before the store is closed.
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _filling(store: Store, settings: LabelSettings) -> Iterator[None]:
    done = threading.Event()
    worker = threading.Thread(target=_fill_now_and_then, args=(store, settings, done), daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()


def _fill_now_and_then(store: Store, settings: LabelSettings, done: threading.Event) -> None:
    seen = _newest(store)
    while not done.wait(LOOK_EVERY_SECONDS):
        try:
            newest = _newest(store)
            if newest != seen:
                fill_items(store, settings)
                seen = newest
        except PreftuneError as error:  # an import that takes long holds the store; look again later
            logging.getLogger("preftune.web").warning("looking for new prompts: %s", error)


def _newest(store: Store) -> tuple[int | None, int | None]:
    with store.reading() as connection:
        prompt, candidate = (connection.execute(select(func.max(t.c.number))).scalar() for t in (tables.prompts, tables.candidates))
    return prompt, candidate
