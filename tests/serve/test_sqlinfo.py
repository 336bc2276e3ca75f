"""What clients ask at connect is answered with exactly the columns of the specification: wrong ones crash a driver."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.flight as fl

from snapshot_assets.serve.messages import CommandGetSqlInfo, pack
from snapshot_assets.serve.sqlinfo import SQL_INFO_SCHEMA, sql_info


def test_the_schema_is_the_specifications() -> None:
    assert SQL_INFO_SCHEMA.field("info_name").type == pa.uint32()
    assert not SQL_INFO_SCHEMA.field("info_name").nullable
    value = SQL_INFO_SCHEMA.field("value").type
    assert value.mode == "dense"
    assert value.type_codes == [0, 1, 2, 3, 4, 5]
    assert [(value.field(n).name, value.field(n).type) for n in range(value.num_fields)] == [
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("bigint_value", pa.int64()),
        ("int32_bitmask", pa.int32()),
        ("string_list", pa.list_(pa.string())),
        ("int32_to_int32_list_map", pa.map_(pa.int32(), pa.list_(pa.int32()))),
    ]


def test_all_facts_or_the_chosen_ones_are_told(client: fl.FlightClient) -> None:
    def ask(*numbers: int) -> dict[int, object]:
        command = fl.FlightDescriptor.for_command(pack(CommandGetSqlInfo(numbers)))
        info = client.get_flight_info(command)
        assert info.schema == SQL_INFO_SCHEMA
        answer = client.do_get(info.endpoints[0].ticket).read_all()
        assert answer.schema == SQL_INFO_SCHEMA
        answer.validate(full=True)
        return dict(zip(answer.column("info_name").to_pylist(), answer.column("value").to_pylist(), strict=True))

    assert ask(0, 3, 4) == {0: "snapshot-assets", 3: True, 4: True}
    assert ask(999_999) == {}
    assert set(ask()) == set(sql_info((), "1").column("info_name").to_pylist())
    assert ask(8) == {8: 0}
