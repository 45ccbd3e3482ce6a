"""A station from Python, over HTTP: inspect and teach without a bank, a backbone or torch.

>>> from continuad.client import Station
>>> with Station("http://127.0.0.1:8765", token="...") as station:
...     print(station.inspect("part.png").label)
"""

from continuad.client.answers import Event, Inspection, Job, Product
from continuad.client.connection import ClientSettings
from continuad.client.station import Station

__all__ = ["ClientSettings", "Event", "Inspection", "Job", "Product", "Station"]
