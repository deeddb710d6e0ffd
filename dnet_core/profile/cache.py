"""Device profiles on disk: one file for what was asked, true while the fingerprint is and for a week.

profiles/3f2a9c....json    named by fingerprint and request; the JSON form of `profile/device.py`
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from dnet_core.errors import RequestError
from dnet_core.files import replace_text
from dnet_core.profile.device import profile_from_json, profile_to_json
from dnet_core.types.profiles import DeviceProfile, ProfileRequest

log = logging.getLogger(__name__)

MAX_AGE_S = 7 * 24 * 3600.0


class ProfileCache:
    """The profiles under `directory`; several processes may use it, each file is replaced as a whole."""

    def __init__(self, directory: Path, max_age_s: float = MAX_AGE_S) -> None:
        self._directory = directory
        self._max_age_s = max_age_s

    def get(self, request: ProfileRequest, fingerprint: str, now_unix_s: float) -> DeviceProfile | None:
        """The profile that answers `request`, if one is there that is neither stale nor too old."""
        path = self.path(request, fingerprint)
        try:
            profile = profile_from_json(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, RequestError) as error:
            log.warning("a cached profile is ignored and measured again: %s", error)
            return None
        age_s = now_unix_s - profile.measured_at_unix_s
        if profile.fingerprint != fingerprint or not 0 <= age_s <= self._max_age_s:
            return None
        return profile

    def put(self, request: ProfileRequest, profile: DeviceProfile) -> None:
        """Keep `profile`. A disk that takes it not is told to the log: measuring again costs a second."""
        try:
            replace_text(self.path(request, profile.fingerprint), profile_to_json(profile))
        except OSError as error:
            log.warning("the profile of %s cannot be kept: %s", profile.peer, error)

    def path(self, request: ProfileRequest, fingerprint: str) -> Path:
        """The file for `request` on the hardware and software of `fingerprint`."""
        asked = json.dumps([fingerprint, asdict(request)], sort_keys=True)
        return self._directory / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"
