"""Flask views on the blocking client: an answer as it grows, and a batch that is submitted at once.

    pip install "tokenbus" flask
    TOKENBUS_REDIS_URL=embedded:///tmp/bus python examples/flask_view.py

    curl -N localhost:5000/answer -d prompt="Two sentences about rain:"
    curl localhost:5000/batch -H 'Content-Type: application/json' -d '["One:", "Two:"]'

The client is made at import, so also before gunicorn forks with --preload: every process connects
anew on its first call. All threads of a process share one connection for their streams.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flask import Flask, Response, jsonify, request

from tokenbus.producer import Client, JobResult

if TYPE_CHECKING:
    from collections.abc import Iterator

app = Flask(__name__)
bus = Client.connect()


@app.post("/answer")
def answer() -> Response:
    """Answer one prompt; the job is cancelled when the reader goes away."""
    job = bus.submit(request.form["prompt"], max_tokens=64)

    def text() -> Iterator[str]:
        try:
            for event in bus.stream(job):
                yield event.text
        except GeneratorExit:
            bus.cancel(job)
            raise

    return Response(text(), mimetype="text/plain")


@app.post("/batch")
def batch() -> Response:
    """Queue many prompts in one round trip; each is accepted or refused by itself."""
    requests = [{"prompt": prompt, "max_tokens": 16} for prompt in request.get_json()]
    answers = [
        {"text": one.text} if isinstance(one, JobResult) else {"error": str(one)}
        for one in bus.results(bus.submit_many(requests))
    ]
    return jsonify(answers)


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "5000")), threaded=True)
