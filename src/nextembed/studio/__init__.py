"""The studio: runs, models and features in the browser, served from this machine."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported, and later
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
