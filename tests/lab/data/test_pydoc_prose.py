from saiopt.lab.data.pydoc_prose import read_prose


def test_no_held_out_text_is_trained_on() -> None:
    text = read_prose()
    assert len(text.train) > 10 * len(text.held_out) > 200_000
    length = 100
    seen = {text.train[i : i + length] for i in range(len(text.train) - length + 1)}
    starts = range(len(text.held_out) - length + 1)
    assert not [i for i in starts if text.held_out[i : i + length] in seen]


def test_the_split_is_the_same_each_time() -> None:
    assert read_prose() == read_prose()
