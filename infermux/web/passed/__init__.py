"""Endpoints of OpenAI's API whose bytes pass through: images, audio, moderations, rerank, files.

`media` has the endpoints of models, and reads multipart bodies, `files` those of files and batches;
`answers` passes the vendor's bytes on.
"""
