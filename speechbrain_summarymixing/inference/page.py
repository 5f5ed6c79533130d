"""The server's page with a record button, and whose pages may connect."""

import ipaddress
from importlib import resources
from urllib.parse import urlsplit

from speechbrain_summarymixing.errors import UserError

POLICY = (  # the page loads nothing, from nowhere, and speaks to its own server alone
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; "
    "connect-src 'self'"
)


class Door:
    """What a server of websockets answers to requests; its ``process_request``.

    Browsers let any page connect to any server, this machine's too, and tell by the header Origin
    whose page it is. Programs tell none, and may connect.

    Arguments
    ---------
    host : str
        The server's.
    origins : sequence of str
        Origins, such as "https://example.org", whose pages may connect beside the server's own.

    Raises
    ------
    UserError
        If an origin is none.
    """

    def __init__(self, host, origins):
        self.host, self.origins = host.lower(), set(map(_origin, origins))
        self.page = resources.files(__package__).joinpath("page.html").read_text("utf-8")

    def __call__(self, connection, request):
        """Returns the page or an error, or None where a websocket may follow."""
        if request.path.partition("?")[0] != "/":
            return connection.respond(404, "Here is nothing: the page is at /\n")
        if "Upgrade" not in request.headers:
            response = connection.respond(200, self.page)
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/html; charset=utf-8"
            response.headers["Content-Security-Policy"] = POLICY
            return response
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if all(origin.lower() in self.origins or self._own(origin, hosts) for origin in origins):
            return None
        return connection.respond(
            403, f"Pages of {' '.join(origins)} may not connect: serve with --origin lets them\n"
        )

    def _own(self, origin, hosts):
        """Whether an origin is that of the server's page.

        A name that is not the server's could be anyone's and lead here: it does not do.
        """
        if [origin] != [f"http://{host}" for host in hosts]:
            return False
        try:
            name = urlsplit(origin).hostname
        except ValueError:
            return False
        return name in ("localhost", self.host) or _address(name) is not None


def is_loopback(host):
    """Whether a host can be reached from this machine alone."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _origin(text):
    origin = text.lower().rstrip("/")
    scheme, _, host = origin.partition("://")
    if scheme not in ("http", "https") or not host or "/" in host:
        raise UserError(
            f"--origin is {text}, but must be a scheme, a host and perhaps a port, without a path: "
            "https://example.org"
        )
    return origin


def _address(host):
    """A numeric address, or None of a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
