// The threads of a pass: OpenMP's team, which is torch's, and shares of work by ticket.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tokenbus {

// One thread's place in a team. Work is drawn by ticket, so that a thread that lost its core to
// another process holds the others up by one piece, not by half of a phase.
class Member {
   public:
    Member(int rank, int size, std::vector<std::atomic<int>>* tickets)
        : rank_(rank), size_(size), tickets_(tickets) {}

    int rank() const { return rank_; }
    int size() const { return size_; }

    void wait() const {
#if defined(_OPENMP)
        if (size_ > 1) {
#pragma omp barrier
        }
#endif
    }

    // Call f(idx) for idx in [0, count) on whichever member comes first, `chunk` in a row. Every
    // member has to come through the same calls; nobody waits at the end.
    template <class F>
    void share(int count, int chunk, F f) {
        if (size_ == 1) {
            for (int idx = 0; idx < count; idx++) f(idx);
            return;
        }
        auto& ticket = (*tickets_)[phase_++];
        for (;;) {
            int first = ticket.fetch_add(chunk, std::memory_order_relaxed);
            if (first >= count) return;
            int last = first + chunk < count ? first + chunk : count;
            for (int idx = first; idx < last; idx++) f(idx);
        }
    }

   private:
    int rank_;
    int size_;
    size_t phase_ = 0;
    std::vector<std::atomic<int>>* tickets_;
};

// Call f(member) on every thread of a team, whose `share` is called at most `num_phases` times.
template <class F>
void run_team(int num_threads, size_t num_phases, F f) {
    std::vector<std::atomic<int>> tickets(num_phases);
#if defined(_OPENMP)
#pragma omp parallel num_threads(num_threads)
    {
        Member member(omp_get_thread_num(), omp_get_num_threads(), &tickets);
        f(member);
    }
#else
    (void)num_threads;
    Member member(0, 1, &tickets);
    f(member);
#endif
}

}  // namespace tokenbus
