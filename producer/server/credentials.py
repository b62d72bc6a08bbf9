"""A password that lies in a file, read anew for every connection: it may change at run time.

Who changes it writes the file, then tells the server, in either order: a connection that is refused
meanwhile is opened again.
"""

from __future__ import annotations

from pathlib import Path

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError


class PasswordFile(CredentialProvider):
    """Gives redis-py user and password at every connect; `repr` names the file alone."""

    def __init__(self, username: str | None, path: str) -> None:
        self._username = username
        self._path = Path(path)

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Read the file; blanks and newlines around the password are none of it.

        Raises: redis-py's AuthenticationError where it cannot be read.
        """
        reason = "it is empty"
        password = ""
        try:
            password = self._path.read_text(encoding="utf-8-sig").strip()
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except UnicodeError:
            reason = "it is no UTF-8"
        if not password:
            raise AuthenticationError(f"password_file {self._path}: {reason}")
        return (password,) if self._username is None else (self._username, password)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Read the file, which takes microseconds. Raises: as `get_credentials`."""
        return self.get_credentials()

    def __repr__(self) -> str:
        """Return the name of the file."""
        return f"PasswordFile({str(self._path)!r})"
