"""Endpoints of OpenAI's API whose bytes pass through: images, audio, moderations, rerank, files.

`media` has the endpoints of models, `files` those of files and batches; `uploads` reads multipart
bodies, and `answers` passes the vendor's bytes on.
"""
