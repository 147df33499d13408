-- The macros of macros.py, each after those that it calls. What stands in braces becomes named
-- parameters with their defaults. `list_transform([x], lambda k: …)[1]` names x: it is computed once.

create or replace temp macro rlt_token_kl(
  student_think_logprobs, teacher_think_logprobs, think_kl := null::double[], {token}
) as
  list_transform(
    case
      when len(student_think_logprobs) <> len(teacher_think_logprobs)
      then error(
        len(student_think_logprobs) || ' student and ' || len(teacher_think_logprobs)
        || ' teacher think log-probs'
      )
      when kl = 'full' and len(think_kl) <> len(teacher_think_logprobs)
      then error(
        'kl=full: ' || len(teacher_think_logprobs) || ' tokens, full-vocabulary KL of '
        || len(think_kl)
      )
      when kl = 'full' then think_kl::double[]
      when kl in ('k1', 'k3') then
        list_transform(
          teacher_think_logprobs,
          lambda teacher, i: teacher::double - student_think_logprobs[i]::double
        )
      else error('kl: ' || kl || ' is none of k1, k3, full')
    end,
    lambda d: least(case when kl = 'k3' then exp(-d) - 1 + d else d end, clip_kl)
  );

create or replace temp macro rlt_r_ss(solution_logprobs, alpha, {solution}) as
  list_transform(
    [list_transform(
      solution_logprobs, lambda logprob: greatest(logprob::double, -clip_logprob)
    )],
    lambda clipped: list_aggregate(clipped, solution_reduction)
      + alpha::double * list_aggregate(clipped, solution_extreme)
  )[1];

create or replace temp macro rlt_r_kl(
  student_think_logprobs, teacher_think_logprobs, alpha, think_kl := null::double[], {think}
) as
  list_transform(
    [rlt_token_kl(
      student_think_logprobs, teacher_think_logprobs, think_kl, kl := kl, clip_kl := clip_kl
    )],
    lambda k: case
      when len(k) = 0 then empty_think_kl * (1 + alpha::double)
      else list_aggregate(k, think_reduction) + alpha::double * list_aggregate(k, think_extreme)
    end
  )[1];

create or replace temp macro rlt_penalty(closed, {penalty}) as
  case closed when true then 0::double when false then unclosed_penalty::double end;

create or replace temp macro rlt_total(r_ss, r_kl, penalty, kl_weight) as
  r_ss - kl_weight::double * r_kl + penalty;

create or replace temp macro rlt_reward(
  solution_logprobs, student_think_logprobs, teacher_think_logprobs, alpha, kl_weight,
  closed := true, think_kl := null::double[], {solution}, {think}, {penalty}
) as
  rlt_total(
    rlt_r_ss(
      solution_logprobs, alpha, solution_reduction := solution_reduction,
      solution_extreme := solution_extreme, clip_logprob := clip_logprob
    ),
    rlt_r_kl(
      student_think_logprobs, teacher_think_logprobs, alpha, think_kl, kl := kl,
      clip_kl := clip_kl, think_reduction := think_reduction, think_extreme := think_extreme,
      empty_think_kl := empty_think_kl
    ),
    rlt_penalty(closed, unclosed_penalty := unclosed_penalty),
    kl_weight
  );
