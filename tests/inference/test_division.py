"""How the pictures of a prediction are divided among processes."""

from hypothesis import given
from hypothesis import strategies as st

from camtrain.inference.division import Division


@given(
    total=st.integers(0, 300),
    processes=st.integers(1, 5),
    block=st.integers(1, 70),
    first=st.integers(0, 80),
)
def test_every_input_is_that_of_one_process(
    total: int, processes: int, block: int, first: int
) -> None:
    picked = []
    for rank in range(processes):
        division = Division(rank, processes, block)
        numbers = list(division.pick(range(total)))
        assert len(numbers) == division.count(total)
        assert numbers == [division.number(place) for place in range(len(numbers))]
        assert list(division.pick(range(total), first=first)) == numbers[first:]
        picked += numbers
    assert sorted(picked) == list(range(total))
