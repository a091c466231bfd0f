"""The baselines: a simple hand-written proxy, and a view that does nothing."""

import os
from typing import Any

import requests
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
session = requests.Session()
UPSTREAM = os.environ["BENCH_UPSTREAM"] + "/v1/chat/completions"


@app.post("/v1/chat/completions")
def chat() -> Any:
    body = request.get_json()
    headers = {"Authorization": "Bearer " + os.environ["BENCH_KEY"]}
    if body.get("stream"):
        streamed = session.post(UPSTREAM, json=body, headers=headers, timeout=60, stream=True)
        return Response(
            streamed.iter_content(chunk_size=None),
            status=streamed.status_code,
            content_type=streamed.headers["Content-Type"],
        )
    answer = session.post(UPSTREAM, json=body, headers=headers, timeout=60)
    return jsonify(answer.json()), answer.status_code


@app.route("/bare", methods=["GET", "POST"])
def bare() -> bytes:
    return b'{"content": "echo: hello"}'
