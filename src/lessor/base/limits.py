# SPDX-License-Identifier: Apache-2.0
"""The limits of the server in one place: value, unit, reason.

Peers and clients can make the server keep things, repeat work, wait, or work long in one step. Each bound on that
stands here, so that a slow or hostile peer costs itself, not the server. A bound that the command line sets stands here
with its default. A module may give a limit a name of its own.

Not here, but with the module that needs them:
- numbers that a protocol or a file format fixes: wire/, server/services/snapshot.py, durable/;
- the sizes and steps of the data directory: durable/, server/loop/committer.py;
- when a lease ends, is saved or is spared: state/leases.py, state/replay.py, server/loop/expiry.py;
- when an algorithm changes its way, with the same result: state/key_index.py, state/expiry_queue.py,
  state/watch_hub.py;
- how often something is looked at, and the values that etcd gives where a request names none: server/services/;
- the limits of the client and of the commands: client/, cli/, testing/.
"""

# --- leases -----------------------------------------------------------------------------------------------------
LEASE_TTL_S_MAX = 9_000_000_000  # etcd's bound; a longer TTL is OutOfRange
LEASE_TTL_S_MIN = 1  # default of --min-lease-ttl; etcd's default is 2, from its election timeout
EXPIRE_PER_TURN_MAX = 250  # leases ended in one loop turn, so that many ends do not starve keepalives: 3 to 8 ms
REPLY_PARTS_MAX = 1_000  # leases, or keys of a lease, of one reply that are encoded in one loop turn: 0.5 to 3 ms
READ_STEP_KEYS = 1_000  # keys of a long read that are looked at in one loop turn: about a millisecond
READ_STEP_BYTES = 1_048_576  # keys and values of a long read that are encoded in one loop turn: about a millisecond
# Of a chunk of a RangeStream, behind which another one begins; a chunk is longer by one value at most. A peer that does
# not read keeps one of a stream.
RANGE_CHUNK_BYTES = 131_072
RANGE_CHUNK_KEYS_MIN = 16  # keys that are looked at for the first chunk; twice as many for the next if it is small
RANGE_BACKLOG_BYTES = 65_536  # of chunks that the peer has not taken of a stream; beyond it the next one is not made
LONG_REPLY_WAITING_BYTES = 4_096  # counted, beside the request, against the connection of a reply that waits its turn
REPLY_BYTES_MAX = 536_870_912  # of one reply; a read of more has to be done in pages
# Of long replies that are being made, and that peers have not read, over all connections.
LONG_REPLIES_BYTES_MAX = 1_073_741_824
# Keys that the compares and ranges of a txn that may write look at, while all other writes wait: 50 ms.
TXN_WRITE_KEYS_MAX = 100_000
# Keys that a write touches in one loop turn: 2 to 5 ms. A write that touches more is made in steps, and so is the end
# of a lease with more. So many keys the leases that end in one turn have together.
WRITE_STEP_KEYS = 1_000
QUEUED_CALLS_PER_STEP = 100  # that have waited for such a write and are served in one loop turn: 2 to 5 ms
SWEEP_EVENTS_MAX = 500  # events that a sweep handles in one loop turn: 0.1 to 2 ms
SWEEP_BYTES_MAX = 1_048_576  # of values that it takes out of memory meanwhile, and one value more: 1 ms of CRC

SEND_RETRY_S = 0.01  # until bytes that may not leave are looked at again; see `Turn._hold_data`

LEASE_PAGE_DEFAULT = 100  # leases in one page of a list
LEASE_PAGE_MAX = 10_000  # the same when a request asks for more
LEASE_PAGE_KEYS_MAX = 1_000  # keys shown of one lease
LEASE_PAGE_BYTES = 1_048_576  # keys in one page; clients take 4 MiB
LEASE_LIST_STEP = 2_500  # leases, and keys where those matter, looked at between other calls: about a millisecond

# --- requests ---------------------------------------------------------------------------------------------------
REQUEST_BYTES_MAX = 1_572_864  # default of --max-request-bytes: the encoded request
REQUEST_OVERHEAD_BYTES = 524_288  # of a gRPC message, beyond that, as in etcd
# Of a message or a body, while auth is on, from a caller without a valid token. No such caller may put anything, and a
# login takes less; one DATA frame of HTTP/2 is never more.
STRANGER_BYTES_MAX = 16_384
# Of half-sent requests, and of those that wait for their peer, in one connection: forty of the largest.
UNFINISHED_CONNECTION_BYTES_MAX = 67_108_864
UNFINISHED_BYTES_MAX = 536_870_912  # the same for the whole server: memory for calls that are not served yet
# In JSON, of one stream: half a millisecond; the rest in later turns. A long request counts for several.
STREAM_REQUESTS_AT_ONCE_MAX = 100
STREAM_REQUESTS_PER_TURN_MAX = 500  # of all streams with such a rest
STREAM_REQUEST_BYTES = 64  # of JSON, that count as one request there,
STREAM_REQUEST_BRACKETS = 8  # and so many pairs of brackets
# Keys that calls keep while they last: of watches, of waits for locks and elections, of observers.
KEPT_KEYS_CONNECTION_BYTES_MAX = 67_108_864  # in one connection: 30,000 watches with keys of 2 KiB
KEPT_KEYS_BYTES_MAX = 536_870_912  # the same for the whole server
TXN_OPS_MAX = 128  # default of --max-txn-ops
# Compares and operations of a txn and of all txns in it, for each of --max-txn-ops. A txn without others in it has
# three lists, so 3 for each at most. By default 2,048 in all: 5 to 20 ms.
TXN_OPS_IN_ALL = 16
# Of a txn, while auth is on, from a caller without a valid token: up to here it gets the error of its form first, as in
# etcd, and beyond it that of its token. Up to 0.8 ms.
STRANGER_TXN_BYTES_MAX = 4_096
PEER_URLS_MAX = 1_000  # of MemberAdd and MemberUpdate, each of which is looked at: a millisecond
WATCH_FILTERS_MAX = 16  # of a watch; there are two, and the others are not looked at
# Keepalive requests remembered, over all streams, about 300 bytes each. Beyond it all are forgotten and learnt again,
# unless more leases than that are alive: then the others go without, which costs a microsecond.
KEEPALIVES_REMEMBERED_MAX = 65_536
KEEPALIVE_REMEMBERED_BYTES_MAX = 11  # a tag and a number of ten bytes: a longer request is padded, and not remembered
QUOTA_BACKEND_BYTES = 2_147_483_648  # the meaning of --quota-backend-bytes 0

# --- HTTP/2 -----------------------------------------------------------------------------------------------------
H2_FRAME_BYTES_MAX = 16_384  # the largest frame that we accept: the protocol's default, which every peer keeps
H2_WINDOW_BYTES = 1_048_576  # bytes that a peer may send on one stream before we acknowledge
H2_CONNECTION_WINDOW_BYTES = 4_194_304  # the same for all streams of a connection together
H2_STREAMS_MAX = 10_000  # concurrent streams of one connection; etcd leaves them unbounded
H2_HEADER_LIST_BYTES_MAX = 65_536  # decoded header list, counted as RFC 9113 10.5.1 does
H2_HEADER_LIST_BYTES_CEILING = 262_144  # a longer list costs the connection; up to here only its stream (HTTP 431)
# Of Huffman code in one header block, which takes a fifth of a microsecond a byte. More is a list above its limit:
# nobody codes a text that becomes longer by it.
H2_HEADER_HUFFMAN_BYTES_MAX = 65_536
H2_HEADS_BYTES_MAX = 33_554_432  # long header lists that the live streams of one connection keep: 500 of the longest
H2_HEADER_BLOCK_BYTES_MAX = 262_144  # encoded header block over HEADERS and CONTINUATION frames
H2_HEAD_CACHE_MAX = 256  # decoded header blocks a connection remembers: distinct kinds of call, not calls
H2_HEAD_CACHE_BLOCK_BYTES_MAX = 1_024  # longer blocks are not remembered; repeated ones are mostly indexes, so short
H2_FIELD_CACHE_MAX = 256  # single header fields a connection remembers as checked
H2_FIELD_CACHE_BYTES_MAX = 256  # longer values are checked each time
H2_OWN_RESETS_MAX = 1_024  # streams that we reset lately; their frames that are still on the way are passed over
H2_SKIPPED_IDS_MAX = 64  # gaps in the peer's stream ids that we can tell from closed streams
H2_CONTINUATIONS_MAX = 16  # frames of one header block; more is the CONTINUATION flood
H2_RESETS_PER_S_MAX = 400  # unanswered streams that the peer reset or made us reset; burst of one second
H2_PINGS_PER_S_MAX = 100  # of a server, to our client; not counting one ping after each time we sent
H2_SETTINGS_PER_S_MAX = 50
H2_EMPTY_FRAMES_PER_S_MAX = 1_000  # empty DATA frames without END_STREAM: they cost us work and the peer nothing
# Work that no call needs, in units of about a microsecond. A connection may save up the units of one second. The prices
# of frames are in wire/h2_limits.py.
H2_NEEDLESS_PER_S_MAX = 20_000
H2_NEEDLESS_PER_STREAM = 8  # and so many for each stream: its reset, its priority, its windows
H2_NEEDLESS_PER_PIECE = 4  # and for each piece of output: the peer opens its windows and acknowledges
H2_NEEDLESS_PIECE_BYTES = 512  # and one for so many bytes of output: some peers open windows with each small read
H2_HEAD_WORK_FREE = 4_096  # units of decoding that a call may cost; a head of 8 KiB in Huffman code
H2_STEP_BYTES = 32_768  # of frames that are handled before the clock is looked at: two of the largest, or
H2_STEP_FRAMES = 200  # so many small ones: 100 calls, 1 to 5 ms
H2_STEP_BYTES_PER_UNIT = 16  # and so many for each unit of decoding a head: of Huffman code, or for the table
# A longer message of a unary call is read in a step of its own: up to 60 ms. A step in which compressed messages have
# become so many bytes ends.
H2_STEP_MESSAGE_BYTES = 131_072
H2_STEP_S = 0.002  # after which a step ends behind the call under way: 100 calls that do little take half of it
H2_STEP_MESSAGES = 256  # requests of streaming calls in such a step: 1 to 5 ms
H2_SEND_FRAME_BYTES_MAX = 65_536  # of a frame that we send; a larger one would hold up the other streams
GRPC_STATUS_CHARACTERS_MAX = 1_024  # of an error message; it may quote the caller, and clients bound their trailers
GRPC_KEEPALIVE_MIN_TIME_S = 5.0  # default of --grpc-keepalive-min-time: a client's pings, with calls under way
GRPC_PING_WITHOUT_STREAMS_S = 7_200.0  # the same without a call under way, as in grpc-go
GRPC_PING_STRIKES_MAX = 2  # pings that came too early and are forgiven, as in grpc-go
GRPC_KEEPALIVE_INTERVAL_S = 7_200.0  # default of --grpc-keepalive-interval: silence after which a peer is pinged
GRPC_KEEPALIVE_TIMEOUT_S = 20.0  # default of --grpc-keepalive-timeout: the time to answer that ping
TCP_KEEPALIVE_IDLE_S = 60  # silence after which the kernel sends a probe to see whether a peer is there: one packet
TCP_KEEPALIVE_INTERVAL_S = 20  # between such probes
TCP_KEEPALIVE_PROBES = 3  # unanswered ones that end the connection: a peer that vanished keeps its watches two minutes
CONNECTION_LINGER_S = 1.0  # the time for a peer that was sending when its connection ended, to stop and read why
CONNECTION_CLOSE_S_MAX = 60.0  # the time for a peer to take the last bytes of a connection that is over
HANDSHAKE_S_MAX = 10.0  # seconds until a new connection has shown the HTTP/2 preface or a whole HTTP/1 head

# --- descriptors, disk, logs ------------------------------------------------------------------------------------
# Of the limit of open files, kept for what is no connection: the data, its snapshots, certificates. A connection that
# would take one of these is closed at once. With a low limit it is a quarter of that instead, see door.py.
FILES_RESERVED = 64
FILES_FEW = 1_024  # a lower limit of open files is told at the start
DISK_FREE_BYTES_LOW = 268_435_456  # less free space below the data directory is told: a few minutes of a busy server
DISK_LOOK_S = 10.0  # how often the free space is looked at
SHORTAGE_LOG_S = 10.0  # one line for each limit in so many seconds, however often it is reached
LOG_TEXT_CHARACTERS_MAX = 1_024  # of a text in a line of the log, which a client may have chosen
# For so long the page of metrics is given again: it takes 2 ms and no token, and Prometheus asks every second at most.
METRICS_PAGE_S = 0.1
PAGE_QUERY_BYTES_MAX = 2_048  # of a page: a millisecond; the longest that makes sense excludes a few checks

# --- TLS --------------------------------------------------------------------------------------------------------
TLS_HANDSHAKE_S_MAX = 10.0  # from the socket to the end of the handshake; etcd's bound too
TLS_HANDSHAKES_MAX = 1_000  # under way at once; beyond it the oldest of the address with the most is dropped
TLS_LINGER_S = 1.0  # the time for a refused client to read the reason
TLS_REFUSALS_LOGGED_PER_S_MAX = 10  # a scan must not fill the log

# --- HTTP/1.1 ---------------------------------------------------------------------------------------------------
H1_HEAD_BYTES_MAX = 65_536  # request line and headers together
H1_WAITING_BYTES_MAX = 65_536  # pipelined requests that wait in one connection; beyond it we stop reading from it
H1_DRAIN_BYTES_MAX = 262_144  # the rest of a body whose reply is over: read and dropped; more closes the connection
H1_CHUNK_SIZE_LINE_BYTES_MAX = 256  # digits and extensions of the size line of a chunk
H1_STEP_LINES = 1_024  # lines of a chunked body that are read before the clock is looked at: about a millisecond
WEBSOCKET_STEP_FRAMES = 32  # frames of a WebSocket that are read before the clock is looked at: 1 to 2 ms
H1_HEAD_CACHE_MAX = 512  # heads that a parser remembers: a dozen distinct ones of one client are many
H1_HEAD_CACHE_BYTES_MAX = 2_048  # longer heads are not remembered

# --- JSON -------------------------------------------------------------------------------------------------------
# Messages inside messages, the outermost counted: as many as protobuf reads from the wire, where replies are one deeper
# than their requests.
JSON_NESTED_MESSAGES_MAX = 100
# Names and values in one body, counted by the commas, colons and opening brackets in it, which costs a hundredth of
# reading them. Beside this, so many for each of --max-txn-ops: a txn with 128 operations in both branches, and all that
# can be said of each, has half of that. Together 20,480 by default, which takes 5 to 20 ms.
JSON_VALUES_MAX = 4_096
JSON_VALUES_PER_OP = 128
# A body that takes longer than a millisecond is read in a later turn: one such body a turn over all connections, or
# several with so many names and values. So many bytes of a string count as one.
JSON_SHORT_BYTES = 4_096
JSON_SHORT_VALUES = 1_024
JSON_VALUES_PER_TURN = 4_096
JSON_VALUE_BYTES = 64
JSON_SHOWN_LETTERS_MAX = 1_000  # of an offending value, in an error

# --- auth -------------------------------------------------------------------------------------------------------
AUTH_TOKEN_TTL_S = 300  # default of --auth-token-ttl: how long a simple token lives after its last use
LEASE_RIGHTS_KEYS_MIN = 16  # on a lease, up to which each is looked at, and nothing is remembered
LEASE_RIGHTS_READ_KEYS_MIN = 1_000  # the same for the right to read them, which is asked for less often
LEASE_RIGHTS_ADDED_KEYS_MIN = 1_000  # hung on it since its record began, up to which the record is not begun anew
LEASE_RIGHTS_REFUSED_KEYS_MAX = 1_000  # noted for one user: each may go before all keys are looked at again
LEASE_RIGHTS_USERS_MAX = 64  # whose rights on the keys of one lease are remembered; beyond it all are found out anew
BCRYPT_COST = 10  # default of --bcrypt-cost: about 50 ms for each password hashed or checked
PASSWORD_BYTES_MAX = 72  # bcrypt reads no more
AUTH_NAME_BYTES_MAX = 32_768  # of a user or role, in UTF-8: the longest that etcd can store; a longer one ends etcd
PASSWORDS_WAITING_MAX = 1_000  # calls waiting for a hash; beyond it the peer that has most of them is refused
FAILED_LOGINS_LOGGED_PER_S_MAX = 10  # guessing must not fill the log
LOGGED_NAME_CHARACTERS_MAX = 128  # of the user that a failed login named
HASH_NICE = 5  # the hashing threads step back behind the loop's: a third of its share of a core that both want
HASH_THREADS = 2  # hashing releases the interpreter, so it takes whole cores

# --- the core ---------------------------------------------------------------------------------------------------
BATCH_ROWS_MAX = 20_000  # rows in the open batch; beyond it connections that bring more are not read
BATCH_BYTES_MAX = 16_777_216  # the same for the keys and values put in it: a commit makes copies of them
# What connections have sent and the server has read is handled for this long in a turn, over all connections that have
# more than a step of it, but for each of them for at least the other time. The rest waits for the next turn.
TURN_BYTES_S = 0.01
TURN_BYTES_S_MIN = 0.001
LARGE_READ_BYTES = 131_072  # a read of this size is the connection's last one in its turn
# Replies that wait in one connection. In the socket's buffer: beyond it we stop reading from the connection. At the
# gate, of this turn and in flow control, together: beyond it new HTTP/2 requests wait.
CONNECTION_SEND_BYTES_MAX = 16_777_216
# In flow control and in the socket's buffer, together: beyond it the watches of the connection lag. In that buffer
# alone: beyond it long replies stay in the protocol, and requests that wait go on waiting.
CONNECTION_BACKLOG_BYTES_MAX = 4_194_304
# Counted, beside its bytes, for a request over HTTP/2 that waits for that: 0.7 to 1.2 KB with its stream and its timer.
DEFERRED_REQUEST_BYTES = 2_048
SEND_STEP_BYTES = 1_048_576  # of a long reply that are written to a socket in one turn: half a millisecond
WATCH_REPLAY_REVISIONS_MAX = 1_000  # revisions of history in one watch response, as in etcd
WATCH_REPLAY_BYTES_MAX = 2_097_152  # keys and values in one watch response from history; clients take 4 MiB
WATCH_REPLAY_EVENTS_MAX = 2_000  # events in it: 2 to 3 ms; a revision with more, or with more bytes, is sent in steps
# An event that is looked at for history counts for so many bytes of it: 20,000 are a turn's share, 10 to 20 ms.
WATCH_LOOK_BYTES = 200
WATCH_SENT_BYTES = 800  # the same for an event that is encoded and sent: 5,000 are a turn's share, 10 ms
WATCH_AT_ONCE_EVENTS = 1_000  # of one write, whose watchers are found in the step of the write: 1 ms; of more, in steps
WATCH_SCATTER_LOOKS = 20_000  # at events and watchers, for such writes, in one loop turn: 3 to 5 ms
WATCH_STEP_EVENTS = 2_000  # of one revision that are encoded in one step: 1 to 2 ms, or until READ_STEP_BYTES
WATCH_CHUNK_BYTES = 131_072  # of such an encoding that are joined: more than a frame, so that it waits without a copy
WATCH_LARGE_MAX = 4  # streams that encode a revision in steps, over all connections: each may keep its encoding
WATCH_LARGE_BYTES = 67_108_864  # of such encodings, kept for other watchers that wait
# An event's encoding is kept for the next reply or watcher up to this size: a value of 1 KiB and its key. For larger
# ones the copies would be most of the memory, and making them again costs little beside sending them.
EVENT_ENCODING_KEPT_BYTES_MAX = 1_152
COMPACTIONS_KEPT = 10  # whose revisions HashKV answers for as before them; as many as etcd keeps
DIGEST_STEP_KEYS = 500  # keys of a HashKV taken in at once, or their versions, or 1 MiB of values: about a millisecond
SNAPSHOTS_MAX = 4  # snapshot streams at a time; each takes the data's size on disk
SNAPSHOT_READ_S_MAX = 60.0  # for each half MiB of a snapshot that its reader takes: 9 KB/s; a slower one is cut off
SNAPSHOT_YIELD_S = 5.0  # without progress, after which a reader gives its place to a new one if all are taken
SNAPSHOT_BACKLOG_BYTES = 1_048_576  # of a snapshot, waiting in one connection; beyond it the next piece is not read
CLIENT_VERSIONS_MAX = 64  # versions that clients name; a metric keeps a count for each
STOP_CALLS_S_MAX = 5.0  # a stopping server waits so long for calls under way
STOP_COMMIT_S_MAX = 30.0  # and so long for a commit that hangs
STOP_ENGINE_S_MAX = 3.0  # and so long for an engine that does not answer
COMMIT_S_MAX = 7.0  # a commit that takes longer makes the server unhealthy: the time that etcd gives a request
CLOCK_SAVE_S = 1.0  # how often the data clock is saved while leases live: a crash takes it back by at most this much

# --- a shared log in another system -----------------------------------------------------------------------------
CLUSTER_LEASE_S = 1.0  # default of --cluster-lease: a take-over takes a quarter more; four beats are sent in this time
CLUSTER_LEASE_S_MIN = 0.2  # a shorter one would lapse in a slow turn, or a slow append
CLUSTER_LEASE_S_MAX = 60.0
NO_LEADER_S_MAX = 7.0  # for which a call waits for a server that leads; the time that etcd gives a request
FOLLOWERS_TELL_S = 1.0  # between two words of a leader to a server that follows, while nothing is written
FOLLOWER_BACKLOG_BYTES_MAX = 4_194_304  # that a server that follows has not taken; beyond it, it is shown no records
LINK_SILENT_S_MAX = 3.0  # without a byte of the leader, after which a server that follows lets go of the link
LINK_BACKLOG_BYTES_MAX = 16_777_216  # that wait for the leader; beyond it no call begins on the link
LINK_RESETS_PER_STEP = 3  # streams that a link resets each 10 ms: a peer may not reset more than 400 a second
PASSED_BYTES_MAX = 268_435_456  # of requests that wait for the leader or its answer, all together
PASSED_STREAM_BYTES_MAX = 1_048_576  # the same of one keepalive stream
FOLLOWER_LAG_S_MAX = 1.0  # that a server may be behind its leader and call itself ready
READ_INDEX_S_MAX = 0.5  # for which a read at a server that follows waits for its batch, before it is passed on
READ_OWN_WRITE_S_MAX = 0.5  # for which the answer to a write waits until this server has its record, too
ORIGIN_REPLY_BYTES_MAX = 65_536  # of a reply that stands in the log, so that the server that passed it on finds it
LINK_MESSAGE_BYTES_MAX = 2_147_483_647  # of an answer that is passed on: the leader bounds what it sends
ENGINE_PIECE_BYTES = 1_048_576  # of a snapshot in the engine; also of a record in an etcd, which takes 1.5 MiB at once
# PostgreSQL: without an answer for so long a call is given up, and the connection with it. Its outcome is unknown.
ENGINE_ANSWER_S_MAX = 3.0
ENGINE_ANSWER_BYTES_PER_S = 1_048_576  # and a second more for each so many bytes that are sent or come
# An etcd: for an append; then it is settled by reading, at another endpoint if this one is silent. A member whose
# leader died does not pass an append on that it had sent there, so this is the least that a lost leader costs.
ENGINE_APPEND_S_MAX = 0.4
ENGINE_LARGE_APPEND_S_MAX = 1.5  # the same for a record above ENGINE_LARGE_BYTES, which has to go to all members
ENGINE_LARGE_BYTES = 65_536
# For a read, which finds a new leader by itself. It has to be long enough for several attempts to connect: by a read
# the log finds its way to an endpoint that is there.
ENGINE_READ_S_MAX = 3.0
ENGINE_CONNECT_S_MAX = 0.5  # for one endpoint to take a connection
ENGINE_SLOW_CALL_S_MAX = 5.0  # for a piece, a trim, and the calls of the start
ENGINE_TRIM_STEP_RECORDS = 1_000  # forgotten in one request, which holds up others at the engine for milliseconds
