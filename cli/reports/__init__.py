"""Tables, charts and pages drawn from results: what each command's `report.html` shows, and how it is put together."""
