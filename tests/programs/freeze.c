// SPDX-License-Identifier: MIT

/**
 * @file
 * Stop one thread of a session at a time, wherever it happens to be, and let it go on a little later.
 *
 *     freeze LAUNCHER_PID MILLISECONDS [NAME]
 *
 * A race whose window is a few instructions wide is one of many milliseconds then. All threads below
 * the launcher are stopped: those of the agent, hands, the program's own. A thread that is stopped in
 * the kernel finds its call interrupted, and a fault that it waits in is raised again. Half of the
 * stops are shorter than a tenth of MILLISECONDS. Given a NAME, only threads of that name are stopped.
 * Ends when the launcher does, with the number of stops on stdout; status 77 where tracing is not
 * allowed.
 */

#include "program.h"

#include <dirent.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define PROCESSES_MAX 256
#define THREADS_MAX 1024
/* An agent that is still being started has one: stopped again and again it would not get on. */
#define THREADS_MIN 16

static pid_t processes[PROCESSES_MAX];
static size_t process_count;
static pid_t threads[THREADS_MAX];
static size_t thread_count;
static size_t refusals;

static void add_threads(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *directory = opendir(path);
	for (struct dirent *entry; directory && (entry = readdir(directory));)
		if (atoi(entry->d_name) && thread_count < THREADS_MAX)
			threads[thread_count++] = atoi(entry->d_name);
	if (directory)
		closedir(directory);
}

/* Children are listed by the thread that made them; those of any thread are wanted. */
static void add_children(pid_t pid)
{
	size_t first = thread_count;

	add_threads(pid);
	for (size_t i = first; i < thread_count; i++) {
		char path[64];
		int child;

		snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, threads[i]);
		FILE *file = fopen(path, "r");
		while (file && fscanf(file, "%d", &child) == 1)
			if (process_count < PROCESSES_MAX)
				processes[process_count++] = child;
		if (file)
			fclose(file);
	}
}

/* The launcher's own threads are left alone: it only waits. */
static void find_threads(pid_t launcher)
{
	process_count = 0;
	thread_count = 0;
	add_children(launcher);
	thread_count = 0;
	for (size_t i = 0; i < process_count; i++)
		add_children(processes[i]);
}

/* Returns whether the thread has been stopped; it may have ended, or have been stopped by another. */
static bool freeze(pid_t thread, uint64_t us)
{
	int status;

	if (ptrace(PTRACE_SEIZE, thread, NULL, NULL) < 0) {
		refusals += errno == EPERM; /* also for a thread that ends, or is traced already */
		usleep(100);
		return false;
	}
	ptrace(PTRACE_INTERRUPT, thread, NULL, NULL);
	if (waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status))
		return false;
	/* A signal that was on its way is handed on. */
	bool is_signal = status >> 16 == 0;
	usleep((useconds_t)us);
	ptrace(PTRACE_DETACH, thread, NULL, is_signal ? WSTOPSIG(status) : 0);
	return true;
}

static bool has_name(pid_t thread, const char *name)
{
	char path[64];
	char found[32] = "";

	snprintf(path, sizeof(path), "/proc/%d/comm", thread);
	FILE *file = fopen(path, "r");
	if (file && fscanf(file, "%31s", found) != 1)
		found[0] = 0;
	if (file)
		fclose(file);
	return strcmp(found, name) == 0;
}

int main(int argc, char **argv)
{
	CHECK(argc >= 3, "usage: freeze LAUNCHER_PID MILLISECONDS [NAME]");
	pid_t launcher = atoi(argv[1]);
	uint64_t most_us = strtoull(argv[2], NULL, 0) * 1000;
	size_t stops = 0;

	const char *name = argc > 3 ? argv[3] : NULL;

	seed = now_ns();
	for (uint64_t round = 0; kill(launcher, 0) == 0; round++) {
		if (round % 16 == 0)
			find_threads(launcher);
		if (thread_count < THREADS_MIN) {
			usleep(1000);
			continue;
		}
		uint64_t random = mix(seed + round);
		pid_t thread = threads[random % thread_count];
		if (name && !has_name(thread, name)) {
			usleep(100);
			continue;
		}
		uint64_t us = (random >> 32) % most_us;
		stops += freeze(thread, random & (1u << 31) ? us : us / 10);
	}
	if (!stops && refusals)
		skip("ptrace(PTRACE_SEIZE) of other programs is not permitted");
	printf("%zu\n", stops);
	return 0;
}
