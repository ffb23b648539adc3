"""A pipeline survives its way over the topic whole, the order of its features included."""

from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot


def test_the_order_of_features_survives_the_topic() -> None:
    pipeline = Pipeline.model_validate(
        {
            "name": "ordered",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "at",
                "key": "id",
                "label": {"field": "bad", "maturity": "1d"},
            },
            "unit": "id",
            "fields": {"id": "string", "amount": "float"},
            "features": {
                "doubled": {"expression": "amount * 2"},
                "again": {"expression": "doubled * 2"},  # before `doubled` by name, not by meaning
            },
        }
    )

    read = Snapshot.decode(Snapshot(pipeline, generation=1).encode())

    assert read.pipeline == pipeline
    assert FeatureView(read.pipeline).feature_names == ("doubled", "again")
    assert FeatureView(read.pipeline).definition_hash == FeatureView(pipeline).definition_hash
    assert read.content_hash == Snapshot(pipeline, generation=1).content_hash
