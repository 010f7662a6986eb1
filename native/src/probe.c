// SPDX-License-Identifier: MIT

/**
 * @file
 * What this kernel lets this process do, found out by doing it.
 *
 * Kernel versions are never compared: distributions backport, containers filter system calls, and
 * a capability may be worth nothing in a user namespace. Each question is asked by the call that
 * would need the answer, on descriptors of our own that are closed again. `doctor` prints the
 * result and `run` refuses by it, so the two cannot disagree.
 *
 * No state and no lock. Runs before there is a session, on the control thread.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base.h"
#include "uffd.h"
#include "uffdswap.h"

/** MOVE says EAGAIN while the kernel's own bookkeeping holds the page; others need a turn then. */
#define MOVE_ATTEMPTS_MAX 1000

static int open_by_syscall(int flags)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	return fd >= 0 ? fd : -errno;
}

static int open_by_device(void)
{
	_cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd;

	if (device < 0)
		return -errno;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd >= 0 ? fd : -errno;
}

/** Open one by any way. User mode only is no use to a session, but enough to ask questions. */
static int open_for_questions(void)
{
	int fd = open_by_syscall(0);

	if (fd < 0)
		fd = open_by_device();
	if (fd < 0)
		fd = open_by_syscall(UFFD_USER_MODE_ONLY);
	return fd;
}

/** Ask for features; *offered is set on success and holds every bit the kernel knows. */
static int call_api(int uffd, uint64_t features, uint64_t *offered)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	if (ioctl(uffd, UFFDIO_API, &api) < 0)
		return -errno;
	if (offered)
		*offered = api.features;
	return 0;
}

static void probe_open(struct usw_probe *probe)
{
	int by_syscall = open_by_syscall(0);
	int by_device = open_by_device();

	probe->syscall_error = by_syscall < 0 ? -by_syscall : 0;
	probe->device_error = by_device < 0 ? -by_device : 0;
	probe->open_error = by_device >= 0 ? 0 : probe->syscall_error;
	usw_cleanup_close(&by_syscall);
	usw_cleanup_close(&by_device);
}

static void probe_features(struct usw_probe *probe)
{
	_cleanup_close_ int asked = open_for_questions();
	_cleanup_close_ int used = open_for_questions();

	// Fork events take CAP_SYS_PTRACE here, in the agent, however the descriptor was opened
	// ("userfaultfd: require CAP_SYS_PTRACE for UFFD_FEATURE_EVENT_FORK", Linux 5.5).
	probe->api_error = used < 0 ? -used : -call_api(used, USW_UFFD_FEATURES, NULL);
	if (asked >= 0)
		call_api(asked, 0, &probe->features);
	probe->features_missing = USW_UFFD_FEATURES & ~probe->features;
}

/** Move one page from `source` to `target`, which is registered: true if the content went along. */
static bool move_page(int uffd, char *target, char *source, size_t page_bytes)
{
	struct uffdio_move move = {
		.dst = (uintptr_t)target,
		.src = (uintptr_t)source,
		.len = page_bytes,
	};
	int attempts = MOVE_ATTEMPTS_MAX;

	memset(source, 0x5a, page_bytes);
	while (ioctl(uffd, UFFDIO_MOVE, &move) < 0) {
		if (errno != EAGAIN || --attempts == 0)
			return false;
		sched_yield();
	}
	return target[0] == 0x5a && target[page_bytes - 1] == 0x5a && source[0] == 0;
}

static int probe_move(size_t page_bytes)
{
	_cleanup_close_ int uffd = open_for_questions();
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	bool moved = false;
	char *pages;

	if (uffd < 0 || call_api(uffd, UFFD_FEATURE_MOVE, NULL) < 0)
		return 0;
	pages = mmap(NULL, 2 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	if (pages == MAP_FAILED)
		return 0;

	range.range.start = (uintptr_t)pages;
	range.range.len = page_bytes;
	if (ioctl(uffd, UFFDIO_REGISTER, &range) == 0)
		moved = move_page(uffd, pages, pages + page_bytes, page_bytes);
	munmap(pages, 2 * page_bytes);
	return moved;
}

/** Scan one page that is certainly present: one on our own stack. */
static int probe_pagemap_scan(size_t page_bytes)
{
	_cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct page_region region = {0};
	uint64_t start = (uintptr_t)&region & ~(uint64_t)(page_bytes - 1);
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.start = start,
		.end = start + page_bytes,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};

	return pagemap >= 0 && ioctl(pagemap, PAGEMAP_SCAN, &scan) == 1 && region.start == start;
}

/** An empty argument is refused as EINVAL by a kernel that has the call and by no filter. */
static int probe_clone3(void)
{
	return syscall(SYS_clone3, NULL, 0) < 0 && errno == EINVAL;
}

static int probe_ptrace_capability(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

	if (syscall(SYS_capget, &header, data) < 0)
		return 0;
	return (data[CAP_TO_INDEX(CAP_SYS_PTRACE)].effective & CAP_TO_MASK(CAP_SYS_PTRACE)) != 0;
}

static int read_unprivileged_sysctl(void)
{
	_cleanup_close_ int fd =
		open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	return atoi(text);
}

void usw_probe_run(struct usw_probe *ret)
{
	struct usw_probe probe = {.page_bytes = (int)sysconf(_SC_PAGESIZE)};

	probe_open(&probe);
	probe_features(&probe);
	probe.sysctl_unprivileged = read_unprivileged_sysctl();
	probe.has_move = probe_move((size_t)probe.page_bytes);
	probe.has_pagemap_scan = probe_pagemap_scan((size_t)probe.page_bytes);
	probe.has_clone3 = probe_clone3();
	probe.has_ptrace_capability = probe_ptrace_capability();
	*ret = probe;
}
