// The experts of a mixture: rows sorted by expert, each weight read once by one thread.
#pragma once

#include <vector>

#include "layers.h"
#include "rows.h"
#include "team.h"

namespace tokenbus {

// Linears are those of the first expert, packed as a layer's; the next one's weights begin so many
// bytes behind, and its scales so many numbers.
struct Experts {
    Linear gate_up;  // panels of gate and up alternate, each half padded to whole panels
    Linear down;
    int64_t gate_up_bytes;
    int64_t down_bytes;
    int32_t num_experts;
    int32_t inner_size;
    int32_t activation;
};

// Which pairs of a row and an expert there are, sorted by expert.
struct Pairs {
    int32_t num_rows;
    int32_t top_k;
    const int32_t* starts;   // [experts + 1], the first pair of each
    const int32_t* rows;     // [pairs]
    const int32_t* places;   // [rows, top_k], where a row's pairs are
    const float* weights;    // [rows, top_k]
};

// Rows whose gates a thread holds at once.
constexpr int kExpertRows = 64;

template <class Kind>
class ExpertsPass {
   public:
    using T = typename Kind::Value;

    // x: [rows, H]; out: [rows, H], the weighted sums.
    ExpertsPass(const Experts& experts, const Pairs& pairs, const T* x, float* out)
        : experts_(experts), pairs_(pairs), x_(x), out_(out) {
        hidden_size_ = experts.gate_up.num_inputs;
        for (int expert = 0; expert < experts.num_experts; expert++)
            if (pairs.starts[expert + 1] > pairs.starts[expert]) used_.push_back(expert);
        for (const Linear* linear : {&experts.gate_up, &experts.down})
            if (linear->format != kPlain)
                widest_ = std::max(widest_, padded<Kind>(linear->num_inputs));
    }

    // False if there is no memory for it.
    bool run(int num_threads, Workspace& workspace) {
        Cutter counter(nullptr);
        cut(counter, num_threads);
        char* base = workspace.reserve(counter.used());
        if (base == nullptr) return false;
        Cutter cutter(base);
        cut(cutter, num_threads);
        run_team(num_threads, 4, [&](Member& member) { run(member); });
        return true;
    }

   private:
    void cut(Cutter& cutter, int num_threads) {
        const size_t num_pairs = size_t(pairs_.num_rows) * pairs_.top_k;
        gathered_ = cutter.take<T>(num_pairs * hidden_size_);
        inner_ = cutter.take<T>(num_pairs * experts_.inner_size);
        parts_ = cutter.take<float>(num_pairs * hidden_size_);
        wide_ = cutter.take<T>(size_t(num_threads) * kPanel * widest_);
    }

    void run(Member& member) {
        const int num_pairs = pairs_.num_rows * pairs_.top_k;
        const int gates = num_panels(experts_.gate_up) / 2, downs = num_panels(experts_.down);
        T* wide = wide_ + size_t(member.rank()) * kPanel * widest_;
        member.share(num_pairs, 4, [&](int pair) {
            std::memcpy(gathered_ + size_t(pair) * hidden_size_,
                        x_ + size_t(pairs_.rows[pair]) * hidden_size_, hidden_size_ * sizeof(T));
        });
        member.wait();
        member.share(int(used_.size()) * gates, 1,
                     [&](int idx) { gate_panel(used_[idx / gates], idx % gates, wide); });
        member.wait();
        member.share(int(used_.size()) * downs, 1,
                     [&](int idx) { down_panel(used_[idx / downs], idx % downs, wide); });
        member.wait();
        member.share(pairs_.num_rows, 1, [&](int row) { sum_row(row); });
    }

    static Linear of_expert(const Linear& first, int64_t bytes, int expert) {
        Linear own = first;
        own.weight = static_cast<const uint8_t*>(first.weight) + bytes * expert;
        if (first.scales != nullptr) own.scales += size_t(num_panels(first)) * kPanel * expert;
        return own;
    }

    void gate_panel(int expert, int pair, T* wide) {
        alignas(kCacheLine) float gates[kExpertRows * kPanel];
        const Linear own = of_expert(experts_.gate_up, experts_.gate_up_bytes, expert);
        const size_t inner_size = experts_.inner_size;
        const int column = pair * kPanel;
        const int width = std::min(kPanel, int(inner_size) - column);
        const int end = pairs_.starts[expert + 1];
        for (int first = pairs_.starts[expert]; first < end; first += kExpertRows) {
            const int count = std::min(kExpertRows, end - first);
            const T* x = gathered_ + first * hidden_size_;
            linear_panel<Kind>(own, x, hidden_size_, count, 2 * pair, wide,
                               [&](int row, int, int, const float* sums) {
                                   std::memcpy(gates + row * kPanel, sums, kPanel * sizeof(float));
                               });
            linear_panel<Kind>(own, x, hidden_size_, count, 2 * pair + 1, wide,
                               [&](int row, int, int, const float* ups) {
                                   gate(gates + row * kPanel, ups, width,
                                        Activation(experts_.activation),
                                        inner_ + (first + row) * inner_size + column);
                               });
        }
    }

    void down_panel(int expert, int panel, T* wide) {
        const Linear own = of_expert(experts_.down, experts_.down_bytes, expert);
        const int first = pairs_.starts[expert], count = pairs_.starts[expert + 1] - first;
        linear_panel<Kind>(own, inner_ + size_t(first) * experts_.inner_size, experts_.inner_size,
                           count, panel, wide, [&](int row, int column, int width,
                                                   const float* sums) {
                               float* to = parts_ + (first + row) * hidden_size_ + column;
                               std::memcpy(to, sums, width * sizeof(float));
                           });
    }

    // In the order of the row's experts, whatever threads did when.
    void sum_row(int row) {
        float* to = out_ + row * hidden_size_;
        std::fill(to, to + hidden_size_, 0.0f);
        for (int turn = 0; turn < pairs_.top_k; turn++) {
            const size_t place = size_t(row) * pairs_.top_k + turn;
            const float* part = parts_ + pairs_.places[place] * hidden_size_;
            const float weight = pairs_.weights[place];
            size_t i = 0;
            for (; i + kLanes <= hidden_size_; i += kLanes)
                store(to + i, load(to + i) + load(part + i) * weight);
            for (; i < hidden_size_; i++) to[i] += part[i] * weight;
        }
    }

    const Experts& experts_;
    const Pairs& pairs_;
    const T* x_;
    float* out_;
    size_t hidden_size_ = 0;
    size_t widest_ = 0;  // inputs of the widest rounded linear
    std::vector<int> used_;
    T* gathered_ = nullptr;   // [pairs, H]
    T* inner_ = nullptr;      // [pairs, I]
    float* parts_ = nullptr;  // [pairs, H]
    T* wide_ = nullptr;       // a panel of widened weights for each thread
};

}  // namespace tokenbus
