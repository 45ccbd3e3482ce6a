"""The inspection station: a service and a web page on which products are taught and inspected."""
