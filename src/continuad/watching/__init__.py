"""Sources that never end (folders, videos, cameras) and the places that verdicts about them go to."""

from continuad.watching.address import without_credentials
from continuad.watching.camera import CameraSettings, CameraSource
from continuad.watching.folder import FolderSettings, FolderSource
from continuad.watching.journal import Journal
from continuad.watching.mqtt import MqttAddress, MqttSettings, Publisher
from continuad.watching.sighting import Note, Sighting
from continuad.watching.source import open_source
from continuad.watching.video import Capture, VideoSource

__all__ = [
    "CameraSettings",
    "CameraSource",
    "Capture",
    "FolderSettings",
    "FolderSource",
    "Journal",
    "MqttAddress",
    "MqttSettings",
    "Note",
    "Publisher",
    "Sighting",
    "VideoSource",
    "open_source",
    "without_credentials",
]
