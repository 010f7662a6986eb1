// SPDX-License-Identifier: MIT

/**
 * @file
 * Run a command, and leave none of its processes behind, whatever happens.
 *
 *     supervise REPORT_FD TIMEOUT_SECONDS COMMAND [ARGS]...
 *
 * It is a child subreaper, so every process that the command starts stays below it, and the end of
 * the command is not the end of the story: what is still there after a moment of grace is written
 * to the report as left over, then killed. The same happens at the timeout, and if whoever started
 * this dies. The report is two lines of JSON on REPORT_FD: the pid at the start, the rest at the
 * end. The program's own streams are not touched.
 */

#include "program.h"

#include <ctype.h>
#include <dirent.h>
#include <sys/prctl.h>

#define GRACE_NS (5 * 1000000000ull)
#define PROCESSES_MAX 4096

static pid_t command_pid;

/* ------------------------------------------------------------------ processes below us */

struct process {
	pid_t pid;
	pid_t parent;
	char state;
	char name[17];
};

static struct process processes[PROCESSES_MAX];
static size_t process_count;

/* "pid (name) state parent ..."; the name may hold anything but ends at the last parenthesis. */
static bool read_process(pid_t pid, struct process *ret)
{
	char path[64];
	char text[512];
	char *open_paren;
	char *close_paren;
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (length <= 0)
		return false;
	text[length] = 0;
	open_paren = strchr(text, '(');
	close_paren = strrchr(text, ')');
	if (!open_paren || !close_paren)
		return false;
	*close_paren = 0;
	ret->pid = pid;
	snprintf(ret->name, sizeof(ret->name), "%.16s", open_paren + 1);
	for (char *c = ret->name; *c; c++)
		if (!isprint((unsigned char)*c) || *c == '"' || *c == '\\')
			*c = '?';
	return sscanf(close_paren + 1, " %c %d", &ret->state, &ret->parent) == 2;
}

static void list_processes(void)
{
	DIR *directory = opendir("/proc");

	CHECK(directory, "/proc: %s", strerror(errno));
	process_count = 0;
	for (struct dirent *entry; (entry = readdir(directory)) && process_count < PROCESSES_MAX;)
		if (isdigit((unsigned char)entry->d_name[0]) &&
		    read_process(atoi(entry->d_name), &processes[process_count]))
			process_count++;
	closedir(directory);
}

static bool is_below(pid_t pid)
{
	for (int depth = 0; depth < 256 && pid > 1; depth++) {
		size_t i;

		for (i = 0; i < process_count && processes[i].pid != pid; i++)
			;
		if (i == process_count)
			return false;
		pid = processes[i].parent;
		if (pid == getpid())
			return true;
	}
	return false;
}

static void reap(void)
{
	while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
		;
}

/* Nobody below us can escape: orphans become our children. */
static void kill_all(void)
{
	bool found = true;

	while (found) {
		found = false;
		list_processes();
		for (size_t i = 0; i < process_count; i++)
			if (is_below(processes[i].pid)) {
				found = true;
				kill(processes[i].pid, SIGKILL);
			}
		usleep(1000);
		reap();
	}
}

/* ------------------------------------------------------------------ waiting and reporting */

/* The next signal of the set, 0 at the deadline. */
static int next_signal(const sigset_t *set, uint64_t deadline_ns)
{
	uint64_t now = now_ns();
	uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
	struct timespec timeout = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
	int signal = sigtimedwait(set, NULL, &timeout);

	CHECK(signal > 0 || errno == EAGAIN || errno == EINTR, "sigtimedwait: %s", strerror(errno));
	return signal > 0 ? signal : 0;
}

/* Give what is left a moment to go by itself; true if all of it has gone. */
static bool all_gone(const sigset_t *set)
{
	uint64_t deadline_ns = now_ns() + GRACE_NS;

	while (now_ns() < deadline_ns) {
		reap();
		if (waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD)
			return true;
		if (next_signal(set, now_ns() + 100000000u) == SIGTERM)
			return false;
	}
	return false;
}

static void report_left_over(int fd)
{
	const char *comma = "";

	list_processes();
	for (size_t i = 0; i < process_count; i++)
		if (is_below(processes[i].pid)) {
			dprintf(fd, "%s\"%d %s %c\"", comma, processes[i].pid, processes[i].name,
				processes[i].state);
			comma = ", ";
		}
}

static pid_t start(char **command, const sigset_t *old_set)
{
	pid_t pid = fork();

	CHECK_CALL(pid);
	if (pid)
		return pid;
	setsid();
	sigprocmask(SIG_SETMASK, old_set, NULL);
	execvp(command[0], command);
	dprintf(STDERR_FILENO, "supervise: %s: %s\n", command[0], strerror(errno));
	_exit(127);
}

int main(int argc, char **argv)
{
	sigset_t set;
	sigset_t old_set;
	int report = argc > 3 ? atoi(argv[1]) : -1;
	uint64_t deadline_ns = now_ns() + (argc > 3 ? strtoul(argv[2], NULL, 0) : 0) * 1000000000u;
	bool timed_out = false;
	int status = 0;

	CHECK(report > 2, "usage: %s REPORT_FD TIMEOUT_SECONDS COMMAND [ARGS]...", argv[0]);
	CHECK_CALL(fcntl(report, F_SETFD, FD_CLOEXEC));
	CHECK_CALL(prctl(PR_SET_CHILD_SUBREAPER, 1));
	CHECK_CALL(prctl(PR_SET_PDEATHSIG, SIGTERM));
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	CHECK_CALL(sigprocmask(SIG_BLOCK, &set, &old_set));
	command_pid = start(argv + 3, &old_set);
	dprintf(report, "{\"pid\": %d}\n", command_pid);
	while (waitpid(command_pid, &status, WNOHANG) == 0 && !timed_out) {
		int signal = next_signal(&set, deadline_ns);

		timed_out = signal == SIGTERM || now_ns() >= deadline_ns;
	}
	dprintf(report, "{\"status\": %d, \"timed_out\": %s, \"left_over\": [", status,
		timed_out ? "true" : "false");
	if (timed_out || !all_gone(&set))
		report_left_over(report);
	dprintf(report, "]}\n");
	kill_all();
	return 0;
}
