"""The metrics of an installation's processes, read while it runs."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.prove.site import Site
from tests.suite.stack import free_port


class Scrape:
    """The internal ports of all proxies and auths of a site that is not started yet."""

    def __init__(self, site: Site) -> None:
        stack = site.stack
        self._ports = dict(stack.probe_ports)
        for name in site.all_of("proxy"):
            self._ports[name] = free_port()
            stack.own[name] = {"GATEWAY_PROXY_METRICS_ADDRESS": f"127.0.0.1:{self._ports[name]}"}

    def total(self, metric: str, *processes: str, **labels: str) -> float:
        """The sum of a metric's samples over processes, of those that have these labels."""
        found = 0.0
        for process in processes:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[process]}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == metric and labels.items() <= sample.labels.items():
                        found += sample.value
        return found
