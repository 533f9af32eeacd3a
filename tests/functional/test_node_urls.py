"""REDIS_URL as services in JavaScript read it: as those in Python do, and without a word of a password in an error."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

URLS = Path(__file__).parents[2] / "stubs" / "node-notification" / "sagastream" / "urls.mjs"

#: Reads urls, a JSON list, and writes what each names, or what is wrong with it.
_PARSES = """
import { readFileSync } from 'node:fs'
import { parse, ServiceError } from 'URLS'

const found = JSON.parse(readFileSync(0)).map((url) => {
  try {
    return parse(url ?? undefined)
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error
    return error.message
  }
})
console.log(JSON.stringify(found))
"""

LOCAL = {"host": "localhost", "port": 6379}

SERVERS: dict[str, dict[str, Any]] = {
    "redis://localhost": {"socket": LOCAL, "database": 0},
    "redis://localhost/": {"socket": LOCAL, "database": 0},
    "redis://10.0.0.1:7000/3": {"socket": {"host": "10.0.0.1", "port": 7000}, "database": 3},
    "redis://[::1]:7000": {"socket": {"host": "::1", "port": 7000}, "database": 0},
    "redis://localhost/3?db=4": {"socket": LOCAL, "database": 4},
    "redis://ann:p%40ss%2F%3F@localhost": {"socket": LOCAL, "database": 0, "username": "ann", "password": "p@ss/?"},
    "redis://:secret@localhost": {"socket": LOCAL, "database": 0, "password": "secret"},
    "redis://ann@localhost": {"socket": LOCAL, "database": 0, "username": "ann"},
    "redis://localhost?username=ann&password=s%26t": {
        "socket": LOCAL,
        "database": 0,
        "username": "ann",
        "password": "s&t",
    },
    "redis://ann:one@localhost?password=other": {
        "socket": LOCAL,
        "database": 0,
        "username": "ann",
        "password": "one",
    },
    "redis://ann:s3@one:7000,[::1],two": {
        "socket": {"host": "one", "port": 7000},
        "nodes": [{"host": "one", "port": 7000}, {"host": "::1", "port": 6379}, {"host": "two", "port": 6379}],
        "database": 0,
        "username": "ann",
        "password": "s3",
    },
    "rediss://shop.example:6380/0?ssl_cert_reqs=required": {
        "socket": {"host": "shop.example", "port": 6380, "tls": True},
        "database": 0,
    },
    "rediss://shop?ssl_cert_reqs=none&ssl_ciphers=ECDHE": {
        "socket": {"host": "shop", "port": 6379, "tls": True, "ciphers": "ECDHE", "rejectUnauthorized": False},
        "database": 0,
    },
    "unix:///run/s.sock": {"socket": {"path": "/run/s.sock"}, "database": 0},
    "unix://ann:p%40@/run/a%20b?db=2": {
        "socket": {"path": "/run/a b"},
        "database": 2,
        "username": "ann",
        "password": "p@",
    },
    "redis+sentinel://ann:p%40@one:7000,two,[::1]:7001/shop/3?sentinel_username=sam&sentinel_password=s": {
        "name": "shop",
        "tls": {},
        "database": 3,
        "username": "ann",
        "password": "p@",
        "sentinels": [{"host": "one", "port": 7000}, {"host": "two", "port": 26379}, {"host": "::1", "port": 7001}],
        "login": {"username": "sam", "password": "s"},
    },
    "rediss+sentinel://one/shop?db=1": {
        "name": "shop",
        "tls": {"tls": True},
        "database": 1,
        "sentinels": [{"host": "one", "port": 26379}],
        "login": {},
    },
}

CODES = "characters of a password such as # / ? @ & % are written %23 %2F %3F %40 %26 %25"
ENCODE = f"it cannot be taken apart; {CODES}"
NO_SCHEME = "it is not redis://, rediss://, unix:// or redis+sentinel://"
UNUSABLE = {
    "secret": NO_SCHEME,
    "http://secret": NO_SCHEME,
    "redis:secret": ENCODE,
    "redis://one,two:x": ENCODE,
    "redis://one,,two": "it names no host between two commas",
    "redis://ann:se/cret@localhost": ENCODE,
    "redis://ann:se?cret@localhost": ENCODE,
    "redis://ann:se@cret@localhost": ENCODE,
    "redis://ann:5?secret@localhost": ENCODE,
    "redis://localhost#secret": ENCODE,
    "redis://localhost/secret": ENCODE,
    "redis://localhost:secret": ENCODE,
    "redis://localhost:6379/1/2": ENCODE,
    "redis://ann:secret%@localhost": "a % in it is not followed by two hexadecimal digits",
    "redis://localhost?db=secret": "the database must be a number",
    "unix://run/s.sock": ENCODE,
    "redis://localhost?ssl_ca_certs=ca.pem": "it has an option ssl_ca_certs; that is for rediss:// only",
    "redis://localhost?sentinel_username=s": "it has an option sentinel_username; that is for redis+sentinel:// only",
    "redis://localhost?decode=1": "it has an option decode; there are db, username, password",
    "redis://localhost?password=secret&more=1": f"it has an option that does not exist; {CODES}",
    "redis://ann:5?t=secret@localhost": f"it has an option that does not exist; {CODES}",
    "redis://localhost?password=": "its option password must have a value",
    "rediss://localhost?ssl_ca_path=/certs": "it has an option ssl_ca_path, which Node cannot use; ssl_ca_certs names "
    "one file",
    "rediss://localhost?ssl_cert_reqs=optional": "its option ssl_cert_reqs must be required or none",
    "rediss://localhost?ssl_ca_certs=/no.pem": "its certificates cannot be used: /no.pem: no such file or directory",
    "rediss://localhost?ssl_certfile=/dev/zero": "its certificates cannot be used: /dev/zero: not a file",
    "unix:///run/s.sock?ssl_certfile=c": "it has an option ssl_certfile; that is for rediss:// only",
    "rediss+sentinel://one/shop?x=1": "it has an option x; there are db, username, password, ssl_ca_certs, "
    "ssl_certfile, ssl_keyfile, ssl_password, ssl_ciphers, ssl_check_hostname, ssl_cert_reqs, sentinel_username, "
    "sentinel_password",
    "redis+sentinel://secret": ENCODE,
    "redis+sentinel://ann:secret%zz@one/shop": "a % in it is not followed by two hexadecimal digits",
}


def parsed(*urls: str | None) -> list[Any]:
    script = _PARSES.replace("URLS", URLS.as_uri())
    program = ["node", "--input-type=module", "--eval", script]
    ran = subprocess.run(program, input=json.dumps(urls), capture_output=True, text=True, timeout=60, check=True)
    found: list[Any] = json.loads(ran.stdout)
    return found


@pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="node is not on the path")
def test_a_url_is_read_as_in_python_and_refused_without_any_part_of_it() -> None:
    *found, without, empty = parsed(*SERVERS, *UNUSABLE, None, "")
    refused = {url: f"REDIS_URL is not usable: {why}" for url, why in UNUSABLE.items()}
    assert dict(zip([*SERVERS, *UNUSABLE], found, strict=True)) == SERVERS | refused
    assert without == empty == "REDIS_URL is not set"
