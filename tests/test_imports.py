"""Modules that are kept out of a process, and are there all the same for whoever needs them."""

from __future__ import annotations

import subprocess
import sys

from tests.source_kit import ROOT


def said(code: str) -> str:
    """What a fresh interpreter prints."""
    program = f"import sys\nfrom agent import imports\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_a_library_does_without_what_is_left_out() -> None:
    code = """
with imports.left_out("ssl"):
    import asyncio
print("ssl" in sys.modules, asyncio.sslproto.ssl)
import ssl
print(ssl.SSLContext.__name__)
"""
    assert said(code) == "False None\nSSLContext"


def test_what_is_there_already_stays() -> None:
    code = """
import ssl, urllib.request
with imports.left_out("ssl"), imports.postponed("urllib.request"):
    import asyncio
print(asyncio.sslproto.ssl is ssl, urllib.request.Request.__name__, sys.modules["urllib.request"] is urllib.request)
"""
    assert said(code) == "True Request True"


def test_what_is_postponed_comes_when_it_is_asked_for() -> None:
    code = """
with imports.postponed("urllib.request"):
    import paho.mqtt.client as paho
print("urllib.request" in sys.modules, "http.client" in sys.modules)
print(paho.urllib.request.getproxies.__name__, "urllib.request" in sys.modules)
"""
    assert said(code).split("\n")[0] == "False False"
    assert said(code).split("\n")[1].endswith(" True")


def test_it_comes_where_it_is_asked_for_at_once() -> None:
    code = """
with imports.postponed("textwrap"):
    import textwrap
    from textwrap import dedent
    print(textwrap.dedent is dedent, dedent(" x"), sys.modules["textwrap"] is textwrap)
import textwrap as real
print(real.dedent is dedent, type(real.__file__).__name__)
"""
    assert said(code) == "True x False\nTrue str"


def test_others_get_the_real_one_afterwards() -> None:
    code = """
with imports.postponed("urllib.request"):
    import paho.mqtt.client
import urllib.request
print(type(urllib.request).__name__, urllib.request.Request.__module__, urllib.request.__file__.endswith("request.py"))
"""
    assert said(code) == "module urllib.request True"
