// SPDX-License-Identifier: MIT

/**
 * @file
 * The kernel at evicted memory: system calls that read, write, pin or wait on pages that are out.
 *
 * Each call must do what it does on memory that is present; EFAULT, a short count or a lost
 * wake-up is a failure. Memory that the kernel has pinned must not be taken away from under it.
 */

#include "program.h"

#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define PAGES 1024ul /* 4 MiB */
#define BYTES (PAGES * PAGE_BYTES)

/* ------------------------------------------------------------------ files */

/* An unlinked file in the working directory. */
static int open_file(int flags)
{
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "lifecycle-%d.tmp", getpid());
	fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600);
	if (fd < 0 && flags && errno == EINVAL) {
		unlink(name);
		return -1;
	}
	CHECK(fd >= 0, "%s: %s", name, strerror(errno));
	CHECK_CALL(unlink(name));
	return fd;
}

static void write_all(int fd, const void *start, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t count = write(fd, (const char *)start + done, bytes - done);

		CHECK(count > 0, "write of %zu bytes: %s", bytes - done, strerror(errno));
		done += (size_t)count;
	}
}

static void read_all(int fd, void *start, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t count = read(fd, (char *)start + done, bytes - done);

		CHECK(count > 0, "read of %zu bytes: %s", bytes - done, strerror(errno));
		done += (size_t)count;
	}
}

/* Evicted memory to a file, and the file to other evicted memory. */
static void copy_through(int fd)
{
	char *source = evicted_pages(PAGES, seed);
	char *target = map_pages(PAGES);

	write_all(fd, source, BYTES);
	fill(target, PAGES, seed + 1, 0);
	evict(target, PAGES);
	CHECK_CALL(lseek(fd, 0, SEEK_SET));
	/* Leave the ends alone: a read into the middle must keep what is around it. */
	CHECK_CALL(lseek(fd, 3 * PAGE_BYTES, SEEK_SET));
	read_all(fd, page_at(target, 3), BYTES - 6 * PAGE_BYTES);
	verify(target, 3, seed + 1, 0, "before the read");
	verify(page_at(target, 3), PAGES - 6, seed, 3, "read into evicted memory");
	verify(page_at(target, PAGES - 3), 3, seed + 1, PAGES - 3, "after the read");
	verify(source, PAGES, seed, 0, "source");
}

static void check_read_write(void)
{
	copy_through(open_file(0));
}

static void check_direct_io(void)
{
	int fd = open_file(O_DIRECT);

	if (fd < 0)
		skip("O_DIRECT is not supported by this file system");
	copy_through(fd);
}

/* Page-sized pieces in reverse order; the vector itself is out as well. */
static void check_vectors(void)
{
	char *source = evicted_pages(PAGES, seed);
	struct iovec *vector = map_pages(4);
	char *target = map_pages(PAGES);
	int fd = open_file(0);

	write_all(fd, source, BYTES);
	for (size_t first = 0; first < PAGES; first += 512) {
		for (size_t i = 0; i < 512; i++)
			vector[i] =
				(struct iovec){page_at(target, PAGES - 1 - first - i), PAGE_BYTES};
		evict(target, PAGES);
		evict(vector, 4);
		CHECK(preadv(fd, vector, 512, (off_t)(first * PAGE_BYTES)) ==
			      (ssize_t)(512 * PAGE_BYTES),
		      "preadv: %s", strerror(errno));
	}
	for (size_t page = 0; page < PAGES; page++)
		verify(page_at(target, PAGES - 1 - page), 1, seed, page, "preadv");
}

/* ------------------------------------------------------------------ pipes and sockets */

static int stream_fd;
static char *stream_source;

static void *send_stream(void *argument UNUSED)
{
	write_all(stream_fd, stream_source, BYTES);
	return NULL;
}

static void stream_through(int write_end, int read_end)
{
	char *target = map_pages(PAGES);
	pthread_t sender;

	fill(target, PAGES, seed + 1, 0);
	stream_source = evicted_pages(PAGES, seed);
	evict(target, PAGES);
	stream_fd = write_end;
	CHECK_THREAD(pthread_create(&sender, NULL, send_stream, NULL));
	read_all(read_end, target, BYTES);
	CHECK_THREAD(pthread_join(sender, NULL));
	verify(target, PAGES, seed, 0, "streamed");
}

static void check_pipe(void)
{
	int ends[2];

	CHECK_CALL(pipe(ends));
	stream_through(ends[1], ends[0]);
}

static void check_socket(void)
{
	int ends[2];

	CHECK_CALL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	stream_through(ends[1], ends[0]);
}

/* The pipe holds the pages themselves while they are pressed. */
static void check_vmsplice(void)
{
	char *source = evicted_pages(PAGES, seed);
	char *target = map_pages(16);
	int ends[2];

	CHECK_CALL(pipe(ends));
	for (size_t page = 0; page < 256; page += 8) {
		struct iovec piece = {page_at(source, page), 8 * PAGE_BYTES};

		CHECK(vmsplice(ends[1], &piece, 1, 0) == (ssize_t)(8 * PAGE_BYTES), "vmsplice: %s",
		      strerror(errno));
		if (page % 64 == 0)
			press();
		read_all(ends[0], target, 8 * PAGE_BYTES);
		verify(target, 8, seed, page, "vmspliced");
	}
	verify(source, PAGES, seed, 0, "source");
}

/* ------------------------------------------------------------------ futex */

#define FUTEX_ROUNDS 200u

static uint32_t *futex_word;

static long futex(uint32_t *address, int op, uint32_t value)
{
	struct timespec timeout = {.tv_sec = 20};

	return syscall(SYS_futex, address, op, value, op == FUTEX_WAIT ? &timeout : NULL, NULL, 0);
}

/* Even numbers are ours, odd ones the other side's. */
static void take_turns(uint32_t parity)
{
	for (uint32_t turn = parity; turn < FUTEX_ROUNDS; turn += 2) {
		uint32_t value;

		while ((value = __atomic_load_n(futex_word, __ATOMIC_SEQ_CST)) != turn)
			CHECK(!futex(futex_word, FUTEX_WAIT, value) || errno == EAGAIN ||
				      errno == EINTR,
			      "futex wait in turn %u: %s", turn, strerror(errno));
		if (turn % 50 == 0)
			press();
		__atomic_store_n(futex_word, turn + 1, __ATOMIC_SEQ_CST);
		CHECK_CALL(futex(futex_word, FUTEX_WAKE, 1));
	}
}

static void *other_turns(void *argument UNUSED)
{
	take_turns(1);
	return NULL;
}

/* One side presses while the other waits: the word is out when the wake-up comes. */
static void check_futex(void)
{
	char *start = map_pages(PAGES);
	pthread_t other;

	futex_word = page_at(start, PAGES / 2);
	CHECK_THREAD(pthread_create(&other, NULL, other_turns, NULL));
	take_turns(0);
	CHECK_THREAD(pthread_join(other, NULL));
	CHECK(*futex_word == FUTEX_ROUNDS, "the futex word is %u", *futex_word);
}

/* ------------------------------------------------------------------ io_uring */

#define RING_ENTRIES 8u

static struct {
	int fd;
	struct io_uring_params params;
	char *submission;
	char *completion;
	struct io_uring_sqe *entries;
} ring;

static void *map_ring(size_t bytes, off_t offset)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
			   offset);

	CHECK(start != MAP_FAILED, "io_uring mapping: %s", strerror(errno));
	return start;
}

static void open_ring(void)
{
	struct io_uring_params *params = &ring.params;

	ring.fd = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, params);
	if (ring.fd < 0)
		skip("io_uring is not allowed here (kernel.io_uring_disabled, seccomp)");
	ring.submission = map_ring(params->sq_off.array + params->sq_entries * sizeof(uint32_t),
				   IORING_OFF_SQ_RING);
	ring.completion =
		map_ring(params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe),
			 IORING_OFF_CQ_RING);
	ring.entries = map_ring(params->sq_entries * sizeof(*ring.entries), IORING_OFF_SQES);
}

/* Submit one request and wait for its result. */
static int32_t submit(const struct io_uring_sqe *request)
{
	uint32_t *tail = (uint32_t *)(void *)(ring.submission + ring.params.sq_off.tail);
	uint32_t *array = (uint32_t *)(void *)(ring.submission + ring.params.sq_off.array);
	uint32_t mask = ring.params.sq_entries - 1;
	uint32_t *head = (uint32_t *)(void *)(ring.completion + ring.params.cq_off.head);
	struct io_uring_cqe *results = (void *)(ring.completion + ring.params.cq_off.cqes);
	int32_t result;

	ring.entries[*tail & mask] = *request;
	array[*tail & mask] = *tail & mask;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	while (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		CHECK(errno == EINTR, "io_uring_enter: %s", strerror(errno));
	result = results[*head & (ring.params.cq_entries - 1)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

static void check_io_uring(void)
{
	char *target = map_pages(PAGES);
	int fd = open_file(0);

	open_ring();
	fill(target, PAGES, seed, 0);
	write_all(fd, target, BYTES);
	fill(target, PAGES, seed + 1, 0);
	evict(target, PAGES);
	for (size_t page = 0; page < PAGES; page += 64) {
		struct io_uring_sqe request = {
			.opcode = IORING_OP_READ,
			.fd = fd,
			.addr = (uintptr_t)page_at(target, page),
			.len = 64 * PAGE_BYTES,
			.off = page * PAGE_BYTES,
		};

		CHECK(submit(&request) == (int32_t)(64 * PAGE_BYTES), "read of page %zu", page);
	}
	verify(target, PAGES, seed, 0, "read by io_uring");
}

/* Registered buffers are pinned: pressure must leave these very pages where they are. */
static void check_io_uring_registered(void)
{
	size_t pinned = 256;
	char *target = map_pages(PAGES);
	struct iovec buffer = {target, pinned * PAGE_BYTES};
	int fd = open_file(0);

	open_ring();
	fill(target, PAGES, seed, 0);
	write_all(fd, target, BYTES);
	evict(target, PAGES);
	if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) < 0)
		skip("io_uring cannot register 1 MiB of buffers (RLIMIT_MEMLOCK)");
	fill(target, pinned, seed + 1, 0);
	for (size_t page = 0; page < pinned; page += 64) {
		struct io_uring_sqe request = {
			.opcode = IORING_OP_READ_FIXED,
			.fd = fd,
			.addr = (uintptr_t)page_at(target, page),
			.len = 64 * PAGE_BYTES,
			.off = page * PAGE_BYTES,
		};

		press();
		verify(page_at(target, page), 64, seed + 1, page, "pinned, before the read");
		CHECK(submit(&request) == (int32_t)(64 * PAGE_BYTES), "read of page %zu", page);
		verify(page_at(target, page), 64, seed, page, "read into pinned memory");
	}
	verify(target, PAGES, seed, 0, "pinned and not");
}

/* ------------------------------------------------------------------ a userfaultfd of one's own */

static int own_uffd;
static char *own_range;
static atomic_ulong own_faults;

/* The program's own handler: a missing page gets the pattern of its index. */
static void *serve_own_faults(void *argument)
{
	char *page = argument;
	struct pollfd ready = {.fd = own_uffd, .events = POLLIN};

	for (;;) {
		struct uffd_msg message;
		struct uffdio_copy copy = {.src = (uintptr_t)page, .len = PAGE_BYTES};
		size_t index;

		poll(&ready, 1, -1);
		if (read(own_uffd, &message, sizeof(message)) != sizeof(message))
			continue;
		copy.dst = message.arg.pagefault.address & ~(PAGE_BYTES - 1);
		index = (copy.dst - (uintptr_t)own_range) / PAGE_BYTES;
		fill(page, 1, seed + 1, index);
		atomic_fetch_add(&own_faults, 1);
		CHECK(!ioctl(own_uffd, UFFDIO_COPY, &copy) || errno == EEXIST, "UFFDIO_COPY: %s",
		      strerror(errno));
	}
	return NULL;
}

static void open_own_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.range = {(uintptr_t)own_range, BYTES},
					.mode = UFFDIO_REGISTER_MODE_MISSING};

	own_uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (own_uffd < 0 || ioctl(own_uffd, UFFDIO_API, &api))
		skip("userfaultfd is not allowed to this program");
	CHECK_CALL(ioctl(own_uffd, UFFDIO_REGISTER, &range));
}

/* A range under the program's own userfaultfd is the program's: no page of it may leave. */
static void check_own_userfaultfd(void)
{
	char *managed = map_pages(PAGES);
	pthread_t server;
	unsigned long faults;

	own_range = map_pages(PAGES);
	open_own_uffd();
	fill(managed, PAGES, seed, 0);
	CHECK_THREAD(pthread_create(&server, NULL, serve_own_faults, map_pages(1)));
	verify(own_range, PAGES / 2, seed + 1, 0, "served by the program");
	faults = atomic_load(&own_faults);
	evict(managed, PAGES);
	press();
	CHECK(present_pages(own_range, PAGES / 2) == PAGES / 2, "memory of the program's own "
								"userfaultfd was evicted");
	verify(own_range, PAGES / 2, seed + 1, 0, "served by the program, after pressure");
	CHECK(atomic_load(&own_faults) == faults, "the program served %lu faults twice",
	      atomic_load(&own_faults) - faults);
	verify(own_range, PAGES, seed + 1, 0, "second half");
	verify(managed, PAGES, seed, 0, "managed beside it");
}

/* ------------------------------------------------------------------ strings and structures */

/* Path names and results of calls, both out. */
static void check_small_arguments(void)
{
	char *start = map_pages(64);
	struct timespec *now = page_at(start, 32);
	char *path = page_at(start, 16);
	char *text = (char *)page_at(start, 48) + PAGE_BYTES - 3; /* across a page boundary */

	fill(start, 64, seed, 0);
	for (int i = 0; i < 20; i++) {
		int fd;

		strcpy(path, "/proc/self/comm");
		memset(text, 0, 8);
		evict(start, 64);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		CHECK_CALL(fd);
		evict(start, 64);
		CHECK(read(fd, text, 6) == 6 && !memcmp(text, "lifecy", 6), "read of comm: %.6s",
		      text);
		close(fd);
		evict(start, 64);
		CHECK_CALL(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, now));
		CHECK(now->tv_sec || now->tv_nsec, "no time");
		CHECK(!strcmp(path, "/proc/self/comm"), "the path is now %.20s", path);
	}
}

static const struct check checks[] = {
	{"read_write", check_read_write},
	{"direct_io", check_direct_io},
	{"vectors", check_vectors},
	{"pipe", check_pipe},
	{"socket", check_socket},
	{"vmsplice", check_vmsplice},
	{"futex", check_futex},
	{"io_uring", check_io_uring},
	{"io_uring_registered", check_io_uring_registered},
	{"own_userfaultfd", check_own_userfaultfd},
	{"small_arguments", check_small_arguments},
};

int main(int argc, char **argv)
{
	return run_checks(checks, ARRAY_COUNT(checks), argc, argv);
}
