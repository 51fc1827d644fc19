class _A:
    findings = ()
    first_divergence = None

    def rows(self):
        return []

    def to_json(self):
        return {}


Alignment = _A


def align(*a, **k):
    return _A()
