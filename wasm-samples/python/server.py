"""A Python server: wasi:http/incoming-handler."""

from wit_world import exports
from componentize_py_types import Ok
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam


class IncomingHandler(exports.IncomingHandler):
    """Answers one request."""

    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path = request.path_with_query() or "/"
        if path == "/":
            status, text = 200, b"hello from Python\n"
        elif path == "/echo":
            status, text = 200, body_of(request).upper()
        else:
            status, text = 404, b"not found\n"
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            for start in range(0, len(text), 4096):
                stream.blocking_write_and_flush(text[start : start + 4096])
        OutgoingBody.finish(body, None)


def body_of(request: IncomingRequest) -> bytes:
    """The whole body of a request."""
    chunks = []
    with request.consume() as body, body.stream() as stream:
        while True:
            try:
                chunks.append(stream.blocking_read(64 * 1024))
            except Exception:  # the end: a closed stream is an error
                return b"".join(chunks)
