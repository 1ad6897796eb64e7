"""What visitors may ask of a server."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one visitor where nothing else is said."""

    upload: int = 256 * 2**20  # bytes
    upload_seconds: int = 300
    upload_rate: int = 8 * 2**10  # bytes/s, on average, after upload_grace seconds
    upload_grace: int = 10
    waiting: int = 16  # uploads that are not segmented yet, of all visitors
    kept: int = 16  # results, of all visitors
    keep_seconds: int = 600  # after they were last looked at
    job_seconds: int = 600
    read_seconds: int = 60  # of these for reading, before the first slice is segmented
    memory: int = 3 * 2**30  # bytes of the process that reads
    files: int = 4096  # of an archive
    unpacked: int = 2**31  # bytes of an archive or a .nii.gz
    slices: int = 2048  # of a scan
    side: int = 4096  # pixels
    voxels: int = 2**28  # of a scan, as many as 1024 slices of 512 x 512
    connections: int = 128  # of all visitors
    connections_each: int = 32  # of one address, but for this machine's own
    # for a request to be complete but for its body, and between two
    header_seconds: int = 10
    # without any of an answer being taken; systems take it in large pieces
    answer_seconds: int = 60
