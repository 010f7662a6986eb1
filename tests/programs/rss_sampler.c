// SPDX-License-Identifier: MIT

/**
 * @file
 * Watch a session's memory from outside, every millisecond, and say what the most was.
 *
 *     rss_sampler LAUNCHER_PID
 *
 * Targets are all processes below the launcher but the agent and hands. Hands are left out because
 * they share a target's memory and would count it twice. Anonymous memory is resident minus shared
 * of /proc/PID/statm; for the agent the content of its memfds is added, mapped or not. Ends when
 * the launcher does, with one JSON line.
 *
 * Sampling is by pread() of open files, about 2 us a process. New processes are looked for every
 * 10 ms; one that lives shorter may be missed.
 */

#include "program.h"

#include <ctype.h>
#include <dirent.h>
#include <poll.h>
#include <sys/stat.h>

#define SAMPLE_NS 1000000u
#define SCAN_EVERY 10
#define TASKS_MAX 512
#define MEMFDS_MAX 256

enum kind { KIND_TARGET, KIND_AGENT, KIND_LAUNCHER };

struct task {
	pid_t pid;
	enum kind kind;
	int statm;
	int comm;
	bool seen;
};

static struct task tasks[TASKS_MAX];
static size_t task_count;
static char memfds[MEMFDS_MAX][64];
static ino_t memfd_inodes[MEMFDS_MAX];
static size_t memfd_count;

static struct {
	uint64_t samples;
	uint64_t late; /* samples that began more than 5 ms after the one before */
	uint64_t targets_bytes;
	uint64_t agent_bytes;
	uint64_t memfd_bytes;
	uint64_t total_bytes;
	size_t targets;
} most;

/* ------------------------------------------------------------------ finding the processes */

static int open_of(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static ssize_t read_of(pid_t pid, const char *name, char *text, size_t bytes)
{
	int fd = open_of(pid, name);
	ssize_t length = fd < 0 ? -1 : read(fd, text, bytes - 1);

	if (fd >= 0)
		close(fd);
	text[length > 0 ? length : 0] = 0;
	return length;
}

static pid_t parent_of(pid_t pid)
{
	char text[512];
	char *end;
	int parent = 0;

	if (read_of(pid, "stat", text, sizeof(text)) <= 0)
		return 0;
	end = strrchr(text, ')');
	if (end)
		sscanf(end + 1, " %*c %d", &parent);
	return parent;
}

/* The agent is known by its command line, which it has only after its exec. */
static enum kind kind_of(pid_t pid, pid_t launcher)
{
	char text[512];
	ssize_t length;

	if (pid == launcher)
		return KIND_LAUNCHER;
	length = read_of(pid, "cmdline", text, sizeof(text));
	for (ssize_t i = 0; i < length; i++)
		if (!text[i])
			text[i] = ' ';
	return strstr(text, "uffdswap.agent") ? KIND_AGENT : KIND_TARGET;
}

static void add_task(pid_t pid, pid_t launcher)
{
	struct task *task = &tasks[task_count];

	CHECK(task_count < TASKS_MAX, "more than %d processes", TASKS_MAX);
	task->statm = open_of(pid, "statm");
	task->comm = open_of(pid, "comm");
	if (task->statm < 0 || task->comm < 0) {
		close(task->statm);
		close(task->comm);
		return;
	}
	task->pid = pid;
	task->kind = kind_of(pid, launcher);
	task->seen = true;
	task_count++;
}

static struct task *find_task(pid_t pid)
{
	for (size_t i = 0; i < task_count; i++)
		if (tasks[i].pid == pid)
			return &tasks[i];
	return NULL;
}

/* Parents are known before their children, but for a few that the next scan finds. */
static void scan_processes(pid_t launcher)
{
	DIR *directory = opendir("/proc");

	CHECK(directory, "/proc: %s", strerror(errno));
	for (size_t i = 0; i < task_count; i++)
		tasks[i].seen = false;
	for (struct dirent *entry; (entry = readdir(directory));) {
		pid_t pid = atoi(entry->d_name);
		struct task *task;

		if (!isdigit((unsigned char)entry->d_name[0]) || pid == getpid())
			continue;
		task = find_task(pid);
		if (task) {
			task->seen = true;
			if (task->kind == KIND_TARGET)
				task->kind = kind_of(pid, launcher);
		} else if (pid == launcher || find_task(parent_of(pid))) {
			add_task(pid, launcher);
		}
	}
	closedir(directory);
	for (size_t i = 0; i < task_count;) {
		if (tasks[i].seen) {
			i++;
			continue;
		}
		close(tasks[i].statm);
		close(tasks[i].comm);
		tasks[i] = tasks[--task_count];
	}
}

/* The agent's memfds, each once, by path: an open file here would keep the memory alive. */
static void scan_memfds(pid_t agent)
{
	char folder[64];
	DIR *directory;

	memfd_count = 0;
	snprintf(folder, sizeof(folder), "/proc/%d/fd", agent);
	directory = opendir(folder);
	if (!directory)
		return;
	for (struct dirent *entry; (entry = readdir(directory)) && memfd_count < MEMFDS_MAX;) {
		char *path = memfds[memfd_count];
		char link[64];
		struct stat status;
		size_t i = 0;
		ssize_t length;

		snprintf(path, sizeof(memfds[0]), "/proc/%d/fd/%.16s", agent, entry->d_name);
		length = readlink(path, link, sizeof(link) - 1);
		if (length < 7 || strncmp(link, "/memfd:", 7) || stat(path, &status))
			continue;
		while (i < memfd_count && memfd_inodes[i] != status.st_ino)
			i++;
		if (i == memfd_count)
			memfd_inodes[memfd_count++] = status.st_ino;
	}
	closedir(directory);
}

/* ------------------------------------------------------------------ sampling */

static uint64_t anonymous_bytes(const struct task *task)
{
	char text[128];
	unsigned long resident;
	unsigned long shared;
	ssize_t length = pread(task->statm, text, sizeof(text) - 1, 0);

	text[length > 0 ? length : 0] = 0;
	if (sscanf(text, "%*u %lu %lu", &resident, &shared) != 2 || shared > resident)
		return 0;
	return (resident - shared) * PAGE_BYTES;
}

static bool is_hands(const struct task *task)
{
	char text[32];
	ssize_t length = pread(task->comm, text, sizeof(text) - 1, 0);

	text[length > 0 ? length : 0] = 0;
	return !strncmp(text, "uffdswap-hands", 14);
}

static uint64_t bytes_in_memfds(void)
{
	uint64_t bytes = 0;
	struct stat status;

	for (size_t i = 0; i < memfd_count; i++)
		if (!stat(memfds[i], &status) && status.st_ino == memfd_inodes[i])
			bytes += (uint64_t)status.st_blocks * 512;
	return bytes;
}

static void raise_to(uint64_t *highest, uint64_t value)
{
	if (value > *highest)
		*highest = value;
}

static void sample(void)
{
	uint64_t targets_bytes = 0;
	uint64_t agent_bytes = 0;
	uint64_t memfd_bytes = bytes_in_memfds();
	size_t targets = 0;

	for (size_t i = 0; i < task_count; i++) {
		if (tasks[i].kind == KIND_AGENT)
			agent_bytes += anonymous_bytes(&tasks[i]);
		if (tasks[i].kind != KIND_TARGET || is_hands(&tasks[i]))
			continue;
		targets_bytes += anonymous_bytes(&tasks[i]);
		targets++;
	}
	most.samples++;
	raise_to(&most.targets_bytes, targets_bytes);
	raise_to(&most.agent_bytes, agent_bytes);
	raise_to(&most.memfd_bytes, memfd_bytes);
	raise_to(&most.total_bytes, targets_bytes + agent_bytes + memfd_bytes);
	if (targets > most.targets)
		most.targets = targets;
}

static void rescan(pid_t launcher)
{
	scan_processes(launcher);
	for (size_t i = 0; i < task_count; i++)
		if (tasks[i].kind == KIND_AGENT)
			scan_memfds(tasks[i].pid);
}

int main(int argc, char **argv)
{
	pid_t launcher = argc == 2 ? atoi(argv[1]) : 0;
	struct pollfd gone = {.events = POLLIN};
	struct timespec wake;
	uint64_t last_ns;

	CHECK(launcher > 0, "usage: %s LAUNCHER_PID", argv[0]);
	gone.fd = (int)syscall(SYS_pidfd_open, launcher, 0);
	CHECK(gone.fd >= 0, "pidfd_open of %d: %s", launcher, strerror(errno));
	clock_gettime(CLOCK_MONOTONIC, &wake);
	last_ns = now_ns();
	for (uint64_t round = 0; poll(&gone, 1, 0) == 0; round++) {
		if (round % SCAN_EVERY == 0)
			rescan(launcher);
		sample();
		most.late += now_ns() - last_ns > 5 * SAMPLE_NS;
		last_ns = now_ns();
		wake.tv_nsec += SAMPLE_NS;
		if (wake.tv_nsec >= 1000000000) {
			wake.tv_nsec -= 1000000000;
			wake.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
	}
	printf("{\"samples\": %lu, \"late\": %lu, \"targets\": %zu, \"targets_bytes\": %lu, "
	       "\"agent_bytes\": %lu, \"memfd_bytes\": %lu, \"total_bytes\": %lu}\n",
	       most.samples, most.late, most.targets, most.targets_bytes, most.agent_bytes,
	       most.memfd_bytes, most.total_bytes);
	return 0;
}
