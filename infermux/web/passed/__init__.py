"""Endpoints of OpenAI's API whose bytes pass through: images, audio, moderations, rerank, files.

`media` has those of a model, `files` those of what vendors store; `uploads` reads multipart
bodies, and `answers` passes the vendor's bytes on.
"""
