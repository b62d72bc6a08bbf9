"""The place of files at this gateway: opened on first use, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.stored.content_store import ContentStore
from tokenbus.producer.stored.stored_files import FileLimits, StoredFiles

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway


class FilePlace:
    """Where files are kept, as the settings say."""

    def __init__(self, gateway: Gateway) -> None:
        """Open the place, if there is one. Raises: StoreUnusable."""
        settings = gateway.settings
        self._files: StoredFiles | None = None
        if settings.files_url is not None:
            limits = FileLimits(settings.gateway_file_bytes, settings.gateway_owner_file_bytes)
            self._files = StoredFiles(gateway.redis, ContentStore(settings.files_url), limits)

    def files(self) -> StoredFiles:
        """Return the files. Raises: ApiError 503 where none are kept."""
        if self._files is None:
            told = "No place for files is set at this gateway (TOKENBUS_FILES_URL)."
            raise ApiError(503, told, code="no_file_place")
        return self._files
