"""tf.train.Example by Google's own implementation of Protocol Buffers, and TFRecord's framing by its definition."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELD = descriptor_pb2.FieldDescriptorProto


def _message(parent, name: str, *fields: tuple) -> descriptor_pb2.DescriptorProto:
    """Fields are (name, number, type, repeated, type name)."""
    message = parent.add(name=name)
    for field, number, kind, repeated, type_name in fields:
        label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
        message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
    return message


def _example_class() -> type:
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    _message(file.message_type, "BytesList", ("value", 1, FIELD.TYPE_BYTES, True, None))
    _message(file.message_type, "FloatList", ("value", 1, FIELD.TYPE_FLOAT, True, None))
    _message(file.message_type, "Int64List", ("value", 1, FIELD.TYPE_INT64, True, None))
    kinds = [("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List")]
    fields = [(name, number, FIELD.TYPE_MESSAGE, False, f".tensorflow.{kind}") for name, number, kind in kinds]
    feature = _message(file.message_type, "Feature", *fields)
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = _message(
        file.message_type, "Features", ("feature", 1, FIELD.TYPE_MESSAGE, True, ".tensorflow.Features.FeatureEntry")
    )
    entry = _message(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, FIELD.TYPE_STRING, False, None),
        ("value", 2, FIELD.TYPE_MESSAGE, False, ".tensorflow.Feature"),
    )
    entry.options.map_entry = True
    _message(file.message_type, "Example", ("features", 1, FIELD.TYPE_MESSAGE, False, ".tensorflow.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example = _example_class()


def serialized(features: dict[str, list]) -> bytes:
    """An Example of lists of bytes, float or int."""
    example = Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
        kind = kinds[type(values[0])] if values else "float_list"
        getattr(feature, kind).value.extend(values)
        getattr(feature, kind).SetInParent()
    return example.SerializeToString()


def parsed(payload: bytes) -> dict[str, list]:
    features = Example.FromString(payload).features.feature
    return {name: list(getattr(feature, feature.WhichOneof("kind")).value) for name, feature in features.items()}


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(byte)
    return table


TABLE = _crc32c_table()


def masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def framed(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    return length + masked_crc(length) + payload + masked_crc(payload)


def unframed(shard: bytes) -> list[bytes]:
    """The payloads of a shard whose checksums are right."""
    payloads = []
    while shard:
        length = int.from_bytes(shard[:8], "little")
        payload, end = shard[12 : 12 + length], 16 + length
        assert masked_crc(shard[:8]) == shard[8:12] and masked_crc(payload) == shard[12 + length : end]
        payloads.append(payload)
        shard = shard[end:]
    return payloads
