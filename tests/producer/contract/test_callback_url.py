"""Webhooks that could never be delivered are refused when the job is submitted."""

from __future__ import annotations

import pytest
from yarl import URL

from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid

IMPOSSIBLE = [
    "", "shop.example/hook", "ftp://shop.example/", "http://", "http:///hook", "https://:443/",
    "http://shop.example:0/", "http://shop.example:65536/", "http://shop.example:x/",
    "http://a..example/", "http://.example/", "http://shop.example../", "http://sh op.example/",
    "http://shop!.example/", f"http://{'a' * 64}.example/", f"http://{'a.' * 127}example/",
    "http://shop%2eexample/", "http://[::1/", "http://[shop]/", "http://[1:2]/", "http://[v1.a]/",
    "http://1.2.3.4.5/", "http://256.1.1.1/", "http://4294967296/", "http://0x1ffffffff/",
    "http://1.2.3.08/", "http://me@shop.example/", "http://me:pw@shop.example/",
    "http://@shop.example/", "http://shop.example\\@127.0.0.1/", "http://shop.example/\n",
    "http://shop\u00a0.example/", "http://shop\u3002\u3002example/", "http://ä" + "ö" * 63 + ".de/",
    "http://x[::1]/", "http://[::1]x/", "http://[::1]08.1/", "http://shop\u200d.example/",
    "http://\ufeffshop.example/", "http://xn--/", "http://xn--a.example/", "http://1.2.3.4../",
    "http://\u0660.1../", "http://shop.example:999999/",
]  # fmt: skip
POSSIBLE = [
    "http://shop.example/hook?a=b#c", "https://shop.example:8443/", "https://shop.example./",
    "https://bücher.example/ä", "https://xn--bcher-kva.example/", "http://valkey_hooks:8000/",
    "http://10.0.0.7:80/", "http://[2606:2800:220:1::1]:80/", "http://localhost/", "HTTPS://Shop.Example",
]  # fmt: skip


@pytest.mark.parametrize("url", IMPOSSIBLE)
def test_url_that_can_never_work_is_refused_at_the_door(url: str) -> None:
    """By its field, in place of a day of tries."""
    with pytest.raises(RequestInvalid) as caught:
        JobRequest.build(prompt="x", callback_url=url)
    assert caught.value.field == "callback_url"


@pytest.mark.parametrize("url", POSSIBLE)
def test_url_that_may_work_is_taken(url: str) -> None:
    """Inner addresses too, for the operator may allow them; the library that posts reads all."""
    assert JobRequest.build(prompt="x", callback_url=url).callback_url == url
    assert URL(url).host
